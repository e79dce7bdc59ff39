"""The benchmark of CLIP and BLIP: plan, checkpoint, rounds, report."""

import json
from itertools import pairwise

import pytest
import torch
from encoder_plan import describe_plan, find_plan
from encoder_speed import main
from random_encoder import (
    encoder_config,
    processor_of,
    prompt_of,
    random_model,
    write_random_encoder,
)
from transformers import BlipForQuestionAnswering, BlipProcessor, CLIPModel, CLIPProcessor

from comp.checkpoints.encoder_shape import PACKAGED, packaged_shape
from comp.checkpoints.slim_encoder_shape import SlimShape
from comp.errors import CompExportError
from comp.families.blip.nlvr import BlipForNlvr2
from comp.flops.encoder import request_macs, usual_request
from comp.plan import PruningPlan, Workload
from comp.registry.code import resolve
from comp.registry.families import family_called
from export.graph.builder import Target

NLVR = packaged_shape("blip-nlvr")


def plan_of(name, rate):
    shape = packaged_shape(name)
    return find_plan(shape, rate, usual_request(shape), name)


# The plan


@pytest.mark.parametrize(("name", "rate"), [(n, r) for n in PACKAGED for r in (0.3, 0.6, 0.85)])
def test_the_plan_has_its_rate_and_is_one_of_comp(name, rate, tmp_path):
    if (name, rate) in {("blip-caption", 0.85), ("blip-vqa", 0.85)}:
        rate = 0.8  # the head on the vocabulary is never cut
    shape, plan = packaged_shape(name), plan_of(name, rate)
    assert abs(plan.rate - rate) <= 0.005
    cut = SlimShape(shape, shape).planned(plan)
    macs = request_macs(cut.slim, plan.workload, cut.ratios)
    dense = request_macs(shape, plan.workload, {})
    assert (sum(macs.values()), sum(dense.values())) == (plan.macs, plan.macs_dense)
    assert all(macs[part] < dense[part] for part in dense if part not in ("lm_head", "head"))
    for part in ("vision", "language"):
        sizes = [len(block.kept_channels) for block in plan.part(part)][: len(shape.text.blocks)]
        assert sizes == sorted(sizes, reverse=True)  # deeper blocks lose more
        assert sizes[0] > sizes[-1]
        assert all(size % 16 == 0 for size in sizes)
    seen = {drop.after_layer for drop in plan.drops if drop.part == "vision"}
    assert seen >= set(range(1, len(shape.vision.blocks)))
    read = {drop.after_layer for drop in plan.drops if drop.part == "language"}
    assert bool(read) == (name != "blip-caption")
    plan.save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json") == plan == plan_of(name, rate)


def test_a_higher_rate_leaves_no_more_of_anything():
    plans = [describe_plan(plan_of("blip-nlvr", rate)) for rate in (0.4, 0.6, 0.75, 0.85)]
    for less, more in pairwise(plans):
        assert less.keys() == more.keys()
        for key in less.keys() - {"rate"}:
            both = [
                value if isinstance(value, list) else [value] for value in (less[key], more[key])
            ]
            assert all(a >= b for a, b in zip(*both, strict=True))
            assert both[0] != both[1]


@pytest.mark.parametrize("rate", [0.0, 0.97, 1.0])
def test_an_unreachable_rate_is_refused(rate):
    with pytest.raises(CompExportError, match="removes up to"):
        find_plan(NLVR, rate, Workload(image_tokens=1154, text_tokens=36), "blip-nlvr")


# The checkpoint


@pytest.mark.parametrize(
    ("shape", "model", "processor"),
    [
        ("blip-nlvr", BlipForNlvr2, BlipProcessor),
        ("blip-vqa", BlipForQuestionAnswering, BlipProcessor),
        ("clip-b16", CLIPModel, CLIPProcessor),
    ],
)
def test_transformers_and_the_exporter_read_the_checkpoint(shape, model, processor, tmp_path):
    path = write_random_encoder(shape, tmp_path / "one", small=True)
    loaded, report_of_loading = model.from_pretrained(path, output_loading_info=True)
    assert not any(report_of_loading.values())
    again = model.from_pretrained(write_random_encoder(shape, tmp_path / "two", small=True))
    other = model.from_pretrained(write_random_encoder(shape, tmp_path / "three", 1, small=True))
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    weight = "vision_model.encoder.layers.0.mlp.fc1.weight"
    assert not torch.equal(loaded.state_dict()[weight], other.state_dict()[weight])
    config = json.loads((path / "config.json").read_text())
    family = "clip" if shape == "clip-b16" else "blip"
    record = family_called(family)
    contribution = resolve(record.export)(path, config, Target(), None, None)
    assert contribution.params == sum(p.numel() for p in loaded.parameters())
    tokenizer = processor.from_pretrained(path).tokenizer
    assert len(tokenizer) == config["text_config"]["vocab_size"]
    for count in (3, 20, 77):
        assert len(tokenizer(prompt_of(family, count))["input_ids"]) == count


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [("blip-nlvr", 259_372_034), ("clip-b16", 149_620_737), ("clip-l14-336", 427_944_193)],
)
def test_a_whole_shape_has_the_numbers_of_the_original(shape, parameters):
    with torch.device("meta"):
        model = random_model(encoder_config(shape))
    assert model.num_parameters() == parameters


def test_fewer_blocks_change_no_other_size():
    whole, few = encoder_config("clip-l14-336"), encoder_config("clip-l14-336", blocks=3)
    assert few["vision_config"] == whole["vision_config"] | {"num_hidden_layers": 3}
    assert few["text_config"] == whole["text_config"] | {"num_hidden_layers": 3}
    edge = encoder_config("clip-l14-336", edge=168)["vision_config"]
    assert edge == whole["vision_config"] | {"image_size": 168}
    with pytest.raises(CompExportError, match="--edge 160: choose a multiple of the patch, 14"):
        encoder_config("clip-l14-336", edge=160)
    with pytest.raises(CompExportError, match="--blocks 0: choose 1 or more"):
        encoder_config("clip-b16", blocks=0)


def test_vocabularies_add_the_special_tokens_of_the_originals():
    bert = processor_of(encoder_config("blip-vqa")).tokenizer
    ids = bert("Is there a fox?")["input_ids"]
    assert (ids[0], ids[-1], bert.pad_token_id) == (101, 102, 0)
    assert bert.convert_tokens_to_ids(["[DEC]", "[ENC]"]) == [30522, 30523]
    assert bert.decode(ids, skip_special_tokens=True) == "is there a fox?"
    clip = processor_of(encoder_config("clip-b16")).tokenizer
    ids = clip("a fox.")["input_ids"]
    assert (ids[0], ids[-1]) == (49406, 49407)
    assert clip.decode(ids, skip_special_tokens=True).replace(" .", ".").strip() == "a fox."
    with pytest.raises(CompExportError, match="choose 3 or more"):
        prompt_of("clip", 2)
    with pytest.raises(CompExportError, match="no shape 'blip-large'"):
        encoder_config("blip-large")


# The script


def measured(folder, *more, code=0):
    out = folder / "report.json"
    words = ["--small", "--work", str(folder / "work"), "--out", str(out), "--rate", "0.4"]
    assert main([*words, "--repeats", "2", "--warmup", "1", "--questions", "2", *more]) == code
    return json.loads(out.read_text())


def test_blip_report_has_times_and_sizes(tmp_path):
    report = measured(tmp_path)
    assert report["verified"]
    assert len(report["proof"]) == 3
    assert report["workload"]["text_tokens"] == 36
    assert abs(report["rate"] - 0.4) < 0.005
    assert report["threads"] == 2
    assert report["machine"]["cores"]
    assert report["target"] is None  # it is of the full shape
    rows = report["parts"]
    for part, row in rows.items():
        dense, slim = row["dense_ms"], row["compressed_ms"]
        assert 0 < dense["min"] <= dense["p10"] <= dense["median"] <= dense["p90"] <= dense["max"]
        assert row["speed_up"] == dense["median"] / slim["median"]
        macs = report["macs"]
        assert row["flops_ratio"] == macs["dense"][part] / macs["compressed"][part]
        assert row["speed_up_of_flops"] == row["speed_up"] / row["flops_ratio"]
    assert report["macs"]["dense"]["request"] == (
        report["macs"]["dense"]["vision"] + report["macs"]["dense"]["text"]
    )
    assert rows["request"]["dense_ms"]["median"] > rows["vision"]["dense_ms"]["median"]
    text = (tmp_path / "report.md").read_text()
    assert f"{rows['request']['speed_up']:.2f}×" in text
    assert "verified against torch" in text
    # Existing files are used; unverified artifacts are reported as such.
    work = tmp_path / "work" / "blip-nlvr-small-seed0"
    weights = work / "checkpoint" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert measured(tmp_path, "--questions", "0")["verified"] is None
    assert weights.stat().st_mtime_ns == before
    assert "not verified" in (tmp_path / "report.md").read_text()


def test_weights_changed_after_export_fail_the_comparison(tmp_path):
    """The slim checkpoint changes after the export."""
    measured(tmp_path, "--shape", "clip-b16", "--questions", "0")
    (slim,) = (tmp_path / "work").glob("clip-b16-small-seed0/rate-*/checkpoint/model.safetensors")
    from safetensors.torch import load_file, save_file

    state = load_file(slim)
    state["vision_model.encoder.layers.0.mlp.fc2.weight"][0] += 0.5
    save_file(state, slim, {"format": "pt"})
    assert measured(tmp_path, "--shape", "clip-b16", code=1)["verified"] is False
    assert "NOT EQUAL" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    "wrong",
    [("--repeats", "0"), ("--threads", "0"), ("--questions", "-1"), ("--rate", "0.99")],
)
def test_options_out_of_range_are_refused(wrong, tmp_path, capsys):
    assert (
        main(["--small", "--out", str(tmp_path / "r.json"), "--work", str(tmp_path), *wrong]) == 1
    )
    assert wrong[0] in capsys.readouterr().err
    assert not (tmp_path / "r.json").exists()
