"""The embedded LLaVA loads like any other, and answers."""

from importlib.resources import as_file, files

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from comp.checkpoints.locate import resolve_model
from comp.data.emoji_scenes.examples import EmojiScenes
from comp.metrics.exact_match import exact_match

MIB = 2**20


@pytest.fixture(scope="module")
def directory():
    return resolve_model("tiny-llava")


@pytest.fixture(scope="module")
def loaded(directory):
    model = AutoModelForImageTextToText.from_pretrained(
        directory, dtype=torch.float32, local_files_only=True
    )
    return model.eval(), AutoProcessor.from_pretrained(directory, local_files_only=True)


def test_it_is_small_and_safe(directory):
    assert (directory / "model.safetensors").stat().st_size <= 16 * MIB
    assert not [path for path in directory.iterdir() if path.suffix in (".bin", ".pt", ".py")]
    assert "accuracy" in (directory / "README.md").read_text(encoding="utf-8").lower()


def test_it_is_part_of_the_package(directory):
    with as_file(files("comp") / "models" / "tiny-llava") as packaged:
        assert packaged.samefile(directory)


def test_its_shape_leaves_room_for_pruning(loaded):
    model, _ = loaded
    assert type(model) is LlavaForConditionalGeneration
    text = model.config.text_config
    assert text.num_hidden_layers >= 8
    assert text.num_attention_heads >= 8
    assert model.config.vision_config.patch_size == 14


@pytest.mark.slow
def test_it_answers_in_plain_transformers(loaded):
    model, processor = loaded
    questions = EmojiScenes("test", 60)
    right = 0
    for example in (questions[index] for index in range(len(questions))):
        message = [
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": example.question}],
            }
        ]
        prompt = processor.apply_chat_template(message, add_generation_prompt=True)
        inputs = processor(images=example.image, text=prompt, return_tensors="pt")
        assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 144
        with torch.no_grad():
            ids = model.generate(**inputs, max_new_tokens=16, do_sample=False)
        answer = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        right += exact_match(example.answer, answer)
    # 94 % of many; 48 of 60 would be a damaged model.
    assert right >= 50
