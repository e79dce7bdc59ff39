"""The real architecture: LLaVA-1.5-7B at full width, two decoder layers, random weights."""

import json

import pytest
import torch
from click.testing import CliRunner
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from comp.cli import cli
from comp.training.tiny_llava import tiny_llava_processor
from comp.training.tiny_tokenizer import build_tokenizer

pytestmark = pytest.mark.slow


def full_width_config(tokenizer):
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
            projection_dim=768,
        ),
        text_config=LlamaConfig(
            vocab_size=32064,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=2,
            num_attention_heads=32,
            num_key_value_heads=32,
            max_position_embeddings=4096,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=576,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("full-width") / "llava"
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration._from_config(
        full_width_config(tokenizer), dtype=torch.float16
    )
    model.save_pretrained(directory)
    del model
    processor = tiny_llava_processor(tokenizer)
    processor.image_processor.size = {"shortest_edge": 336}
    processor.image_processor.crop_size = {"height": 336, "width": 336}
    processor.save_pretrained(directory)
    return directory


def command(*arguments):
    result = CliRunner().invoke(cli, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_prune_export_prove_and_run(checkpoint, tmp_path):
    run = tmp_path / "runs" / "full-width"
    quick = ["--stages", 2, "--steps-per-stage", 1, "--recover-steps", 1, "--batch-size", 1]
    quick += ["--calibration", 1, "--validation", 1]
    pruned = command("prune", "--model", checkpoint, "--rate", 0.3, "--out", run, *quick, "--json")
    assert abs(pruned["rate"] - 0.3) < 0.01
    plan = json.loads((run / "plan.json").read_text())
    assert plan["workload"]["image_tokens"] == 576
    widths = {len(b["kept_channels"]) for b in plan["blocks"] if b["part"] == "language"}
    assert all(width % 64 == 0 for width in widths)
    files = command("onnx", run, "--no-dense", "--json")["files"]
    assert files
    proof = command("verify", run, "--questions", 2, "--max-new-tokens", 3, "--json")
    assert proof["ok"]
    picture = tmp_path / "picture.png"
    from comp.data.emoji_scenes import EmojiScenes

    EmojiScenes("test")[0].image.save(picture)
    answer = command(
        "run", run, "--image", picture, "--prompt", "what is this?", "--max-new-tokens", 3, "--json"
    )
    assert answer["ttft_ms"] > 0
    assert answer["kept"]
