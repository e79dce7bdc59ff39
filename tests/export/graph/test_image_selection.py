"""Image tokens selected after the vision tower: graphs, checkpoints and proofs against brute force."""

import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from pydantic import ValidationError
from transformers import AutoModelForImageTextToText, AutoProcessor

from comp.checkpoints.llava_shape import ModelShape
from comp.errors import CompExportError
from comp.families.llava.forward import image_features
from comp.families.loading import load_adapter
from comp.plan import ImageSelection, PruningPlan
from comp.runs import RUN_VERSION
from export.artifact.load import load_artifact
from export.weights.slim import write_slim_checkpoint
from serve.commands.onnx import command as onnx_command
from serve.commands.verify import command as verify_command
from serve.engines.llava import Engine
from serve.generation.options import GenerationOptions
from tests.export.proof.test_llava_onnx import BOUND, FLAVOURS, next_token, runner
from tests.export.reference import features_of
from tests.export.tiny import (
    make_plan,
    prompt,
    save_checkpoint,
    tiny_config,
    tiny_model,
)

FEW = ImageSelection(tower_tokens=16, dominant=5, contextual=3)
OF_ALL = FEW.model_copy(update={"tower_tokens": 17})
QUESTIONS = 4


@torch.no_grad()
def by_hand(model, pixels, selection):
    """Features ``[I, K, d]`` of a dense model, and the dominant tokens, one token after the other."""
    config, tower = model.config, model.model.vision_tower
    wanted = config.vision_feature_layer
    wanted = [wanted] if isinstance(wanted, int) else wanted
    count = config.vision_config.num_hidden_layers + 1
    used = max(layer % count for layer in wanted)
    states = tower(torch.tensor(pixels), output_hidden_states=True).hidden_states
    layer = tower.encoder.layers[used - 1]
    normed = layer.layer_norm1(states[used - 1])
    split = (*normed.shape[:2], -1, layer.self_attn.head_dim)
    query, key = (
        layer.self_attn.q_proj(normed).view(split),
        layer.self_attn.k_proj(normed).view(split),
    )
    joined = torch.cat([states[layer] for layer in wanted], -1)
    has_class = hasattr(tower.embeddings, "class_embedding")
    first = int(config.vision_feature_select_strategy == "default")
    asking = [0] if has_class else range(split[1])
    images, chosen = [], []
    for image in range(len(pixels)):
        attention = torch.zeros(split[1])
        for head in range(query.shape[2]):
            for token in asking:
                logits = key[image, :, head] @ query[image, token, head] / split[3] ** 0.5
                attention += torch.softmax(logits, -1)
        tokens = list(range(first, split[1]))
        order = sorted(tokens, key=lambda token: -float(attention[token]))
        if has_class and not first:
            order = [0, *(token for token in order if token)]
        strong = sorted(order[: selection.dominant])
        rest = [token for token in tokens if token not in strong]
        groups = {}
        if selection.contextual:
            stride = len(rest) // selection.contextual
            groups = {token: [token] for token in rest[::stride][: selection.contextual]}
        mean_keys = key[image].mean(1)
        for token in rest:
            if token in groups or not groups:
                continue
            near = {
                target: float(torch.cosine_similarity(mean_keys[token], mean_keys[target], dim=0))
                for target in groups
            }
            groups[max(near, key=near.get)].append(token)
        rows = [joined[image, token] for token in strong]
        rows += [joined[image, members].mean(0) for members in groups.values()]
        images.append(torch.stack(rows))
        chosen.append([token - first for token in strong])
    return model.model.multi_modal_projector(torch.stack(images)), chosen


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(
    ("changes", "selection"),
    [
        ({}, FEW),
        ({}, ImageSelection(tower_tokens=16, dominant=6, contextual=0)),
        ({}, ImageSelection(tower_tokens=16, dominant=1, contextual=15)),
        ({"vision_feature_layer": [1, -2]}, FEW),
        ({"tower": "siglip", "vision_feature_layer": -1}, FEW),
        ({"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}, OF_ALL),
    ],
)
def test_graphs_equal_brute_force_and_transformers(flavour, changes, selection, tmp_path):
    model = tiny_model(tiny_config(kv_heads=2, layers=2, **dict(changes)), seed=4)
    checkpoint = save_checkpoint(model, tmp_path / "model")
    plan = whole(make_plan(model.config, drops=(), selection=selection))
    actual = runner(tmp_path / "onnx", checkpoint, flavour, plan=plan)
    vision = actual.artifact.manifest.vision
    assert (vision.image_tokens, vision.selection) == (selection.count, selection)
    for texts, images, batch in ((5, 1, 1), (7, 2, 3), (4, 0, 1)):
        pixels, ids = prompt(texts, images, seed=texts, batch=batch, tokens=selection.count)
        logits, (kept,), state = actual.prefill(pixels, ids)
        embeds = model.get_input_embeddings()(torch.tensor(ids)).detach()
        assert kept.shape == (batch, images * selection.dominant)
        if images:
            features, chosen = by_hand(model, pixels, selection)
            torch_ = image_features(model, torch.tensor(pixels), selection=selection)
            assert torch_.selected.places[:, : selection.dominant].tolist() == chosen
            assert torch.allclose(torch_.states, features, atol=1e-4)
            assert np.abs(features_of(actual, pixels) - features.numpy()).max() <= BOUND
            in_all = (
                np.array(chosen) + np.tile(np.arange(images), batch)[:, None] * vision.tower_tokens
            )
            assert np.array_equal(kept, in_all.reshape(batch, -1))
            embeds[torch.tensor(ids) == model.config.image_token_id] = features.reshape(
                -1, features.shape[-1]
            )
        for _ in range(3):
            with torch.no_grad():
                states = model.model.language_model(inputs_embeds=embeds).last_hidden_state[:, -1]
                expected = model.lm_head(states).numpy()
            assert np.abs(logits - expected).max() <= BOUND
            token = next_token(expected)
            embeds = torch.cat(
                [embeds, model.get_input_embeddings()(torch.tensor(token))[:, None]], 1
            )
            logits, state = actual.step(token, state)


def whole(plan):
    """The plan with nothing cut."""
    blocks = tuple(
        block.model_copy(
            update={
                "kept_key_value_heads": tuple(range(block.num_key_value_heads)),
                "kept_channels": tuple(range(block.intermediate_size)),
            }
        )
        for block in plan.blocks
    )
    return plan.model_copy(update={"blocks": blocks})


@pytest.fixture
def run(tmp_path):
    """A finished run that cuts both parts, chooses image tokens and drops more of them later."""
    model = tiny_model(tiny_config(kv_heads=2), seed=6)
    dense = save_checkpoint(model, tmp_path / "dense")
    plan = make_plan(model.config, vision=True, seed=7, model=str(dense), selection=FEW)
    run = tmp_path / "tiny-0.5"
    run.mkdir()
    plan.save(run / "plan.json")
    write_slim_checkpoint(dense, plan, run / "checkpoint")
    record = {"version": RUN_VERSION, "model": str(dense), "model_path": str(dense)}
    (run / "run.json").write_text(json.dumps(record))
    return run


def export(run, *words):
    result = CliRunner().invoke(
        onnx_command, [str(run), "--no-check", *words], catch_exceptions=False
    )
    assert result.exit_code == 0


def test_every_variant_of_a_run_is_verified(run):
    export(run)
    export(run, "--no-dense", "--flavour", "standard")
    words = [str(run), "--questions", str(QUESTIONS), "--max-new-tokens", "4", "--json"]
    result = CliRunner().invoke(verify_command, words, catch_exceptions=False)
    report = json.loads(result.stdout)
    assert report["ok"]
    for link in report["links"]:
        if link["name"].startswith("dense"):
            assert link["kept"] == []
            continue
        assert [(place["part"], place["after_layer"]) for place in link["kept"]] == [
            ("vision", 2),
            ("language", 1),
            ("language", 3),
        ]
        assert [place["identical"] for place in link["kept"]] == [QUESTIONS] * 3
        assert link["max_logit_difference"] <= 1e-3
    names = [link["name"] for link in report["links"]]
    assert "slim torch = ONNX Runtime, caches in place (onnx-standard)" in names
    assert load_artifact(run / "onnx").manifest.vision.selection == FEW
    assert load_artifact(run / "onnx-dense").manifest.vision.selection is None


def test_verify_fails_on_a_graph_with_another_selection(run):
    """An artifact with another selection must not pass."""
    export(run, "--no-dense")
    plan = PruningPlan.load(run / "plan.json")
    other = ImageSelection(tower_tokens=16, dominant=4, contextual=4)
    plan.model_copy(update={"image_selection": other}).save(run / "plan.json")
    shutil.rmtree(run / "checkpoint")
    dense = json.loads((run / "run.json").read_text())["model"]
    write_slim_checkpoint(type(run)(dense), PruningPlan.load(run / "plan.json"), run / "checkpoint")
    few = ("--questions", "2", "--max-new-tokens", "2", "--answer-seconds", "0")
    result = CliRunner().invoke(verify_command, [str(run), *few, "--json"])
    assert result.exit_code != 0
    report = json.loads((run / "reports" / "verify.json").read_text())
    assert not report["ok"]
    assert report["links"][1]["kept"][0]["different"] == [0, 1]


def test_a_saved_checkpoint_answers_as_its_graphs(run):
    """transformers' own processor writes as many image tokens as there are features."""
    export(run, "--no-dense")
    model = AutoModelForImageTextToText.from_pretrained(run / "checkpoint").eval()
    processor = AutoProcessor.from_pretrained(run / "checkpoint")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 70, 3), np.uint8))
    text = processor.apply_chat_template(
        [
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": "what is this ?"}],
            }
        ],
        add_generation_prompt=True,
    )
    inputs = processor(images=picture, text=text, return_tensors="pt")
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == FEW.count
    generated = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    engine = Engine.load(run / "onnx", device="cpu", threads=1)
    options = GenerationOptions(max_new_tokens=6, ignore_eos=True)
    answer = engine.generate([picture], "what is this ?", options)
    assert answer.image_tokens == FEW.count
    length = inputs["input_ids"].shape[1]
    assert answer.prompt_tokens == length
    theirs = generated[0, length:].tolist()
    assert list(answer.token_ids)[: len(theirs)] == theirs
    features = image_features(model, inputs["pixel_values"])
    chosen = features.selected.places[0, : FEW.dominant].tolist()
    (name, kept), *places = answer.kept.seen()
    assert (name, kept.tolist()) == ("vision tower", chosen)
    for _, left in places:
        assert set(left) <= set(chosen)
    assert answer.kept.to_dict()["vision tower"] == [chosen]
    assert "5 of 16 tokens of an image kept, the others merged into 3" in answer.kept.lines()[0]
    saved = load_adapter(run / "checkpoint")
    assert (saved.selection, saved.shape.image_tokens, saved.shape.tower_tokens) == (FEW, 8, 16)


def test_a_selection_for_another_tower_is_refused():
    model = tiny_model(tiny_config(kv_heads=2))
    shape = ModelShape.from_config(model.config.to_dict())
    with pytest.raises(
        CompExportError, match="of 17 tokens of an image, the model's tower gives 16"
    ):
        shape.with_plan(make_plan(model.config, selection=OF_ALL))
    with pytest.raises(
        ValidationError, match="12 dominant and 5 contextual tokens of an image of 16"
    ):
        ImageSelection(tower_tokens=16, dominant=12, contextual=5)
    blind = tiny_config(kv_heads=2, vision_feature_layer=0)
    with pytest.raises(CompExportError, match="vision_feature_layer leaves none"):
        ModelShape.from_config(blind.to_dict()).selecting(FEW)
