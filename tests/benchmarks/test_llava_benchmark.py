"""The GPU benchmark, as far as it runs without a GPU: plan, checkpoint, rounds, report."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from contestants import onnx_runtime, torch_eager
from llava_speed import main
from plan_shape import describe_plan, find_plan
from random_llava import (
    SHARD_BYTES,
    TINY,
    config_of,
    prompt_of,
    shards_of,
    tensor_shapes,
    write_random_llava,
)
from rivals.base import BenchSettings, Stage
from rounds import RoundOptions, groups_of, measure, picture
from run_files import BOTH, RunFiles
from speed_report import MEASURES, Spread
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from comp.checkpoints.llava_shape import ModelShape, read_shape
from comp.checkpoints.tensor_names import canonical_name
from comp.errors import CompExportError
from comp.flops.llava import llava_macs, llava_params
from comp.plan import PruningPlan, Workload
from export.configs.llava import llava_of
from export.tensorrt.limits import Limits
from export.weights.checkpoint import CheckpointWeights
from serve.backends.onnxruntime.vnni_check import multiplies_exactly
from tests.benchmarks.conftest import BENCHMARKS

SEVEN = read_shape("llava-7b")
PROMPT = Workload(image_tokens=576, text_tokens=64)


# The plan


@pytest.mark.parametrize("tower", [False, True])
@pytest.mark.parametrize("rate", [0.3, 0.5, 0.62, 0.7])
def test_the_plan_has_its_rate_and_is_one_of_comp(rate, tower, tmp_path):
    plan = find_plan(SEVEN, rate, PROMPT, "llava-7b", tower)
    assert abs(plan.rate - rate) <= 0.005
    counted = llava_macs(SEVEN, 576, 64, plan).macs
    assert (counted, 1 - counted / llava_macs(SEVEN, 576, 64).macs) == (plan.macs, plan.rate)
    llava_of(config_of("llava-7b"), "llava-7b").pruned(plan)  # what the exporter checks
    assert [drop.after_layer for drop in plan.drops] == [8, 16, 24]
    assert all(drop.vision_keep_ratio < drop.text_keep_ratio < 1 for drop in plan.drops)
    assert all(len(block.kept_channels) % 64 == 0 for block in plan.blocks)
    language = plan.part("language")
    for sizes in ([len(b.kept_heads) for b in language], [len(b.kept_channels) for b in language]):
        assert sizes == sorted(sizes, reverse=True)  # deeper blocks lose more
        assert sizes[0] > sizes[-1]
    whole = [len(b.kept_channels) == b.intermediate_size for b in plan.part("vision")]
    assert all(whole) is not tower
    plan.save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json") == plan
    assert find_plan(SEVEN, rate, PROMPT, "llava-7b", tower) == plan


def test_a_higher_rate_leaves_no_more_of_anything():
    plans = [
        describe_plan(find_plan(SEVEN, rate, PROMPT, "llava-7b")) for rate in (0.4, 0.5, 0.6, 0.7)
    ]
    for less, more in pairwise(plans):
        for part in ("language_heads", "language_channels"):
            assert all(a >= b for a, b in zip(less[part], more[part], strict=True))
        assert less["drops"][0]["vision_keep_ratio"] > more["drops"][0]["vision_keep_ratio"]


@pytest.mark.parametrize("rate", [0.0, 0.97, 1.0])
def test_an_unreachable_rate_is_refused(rate):
    with pytest.raises(CompExportError, match="removes up to"):
        find_plan(SEVEN, rate, PROMPT, "llava-7b")


# The checkpoint


def test_tensors_match_the_model_on_the_hub():
    shapes = tensor_shapes(config_of("llava-7b"))
    assert sum(np.prod(shape) for shape in shapes.values()) == sum(llava_params(SEVEN).values())
    assert {
        "language_model.lm_head.weight",
        "language_model.model.layers.31.mlp.down_proj.weight",
        "multi_modal_projector.linear_1.weight",
        "vision_tower.vision_model.post_layernorm.weight",
    } <= set(shapes)
    shards = shards_of(shapes)
    assert [name for shard in shards for name in shard] == list(shapes)
    assert all(sum(2 * np.prod(s) for s in shard.values()) <= SHARD_BYTES for shard in shards)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of the tiny shape in single precision, made at the first use."""
    shape = ModelShape.from_config(TINY)
    workload = Workload(image_tokens=shape.image_tokens, text_tokens=64)
    plan = find_plan(shape, 0.62, workload, "tiny")
    limits = Limits(max_prompt=64, max_new_tokens=12)
    return RunFiles(tmp_path_factory.mktemp("work"), "tiny", plan, "float32", limits)


def test_transformers_and_the_exporter_read_the_checkpoint(files, tmp_path, monkeypatch):
    model, report_of_loading = LlavaForConditionalGeneration.from_pretrained(
        files.checkpoint(), dtype=torch.float16, output_loading_info=True
    )
    assert not any(report_of_loading.values())
    state = model.state_dict()
    weights = CheckpointWeights(files.checkpoint())
    assert set(weights.names()) == set(state) == set(map(canonical_name, tensor_shapes(TINY)))
    for name in ("lm_head.weight", "model.vision_tower.encoder.layers.0.mlp.fc1.weight"):
        assert np.array_equal(weights.read(name), state[name].numpy())
    assert all((state[name] == 1).all() for name in state if name.endswith("norm.weight"))
    processor = LlavaProcessor.from_pretrained(files.checkpoint())
    text = f"USER: <image>\n{prompt_of(64)} ASSISTANT:"
    image = picture(RoundOptions(0, 1, 0, (60, 40)), 0)
    assert processor(images=image, text=text, return_tensors="pt")["input_ids"].shape == (1, 128)
    # In shards too small for two tensors it is the same model.
    monkeypatch.setattr("random_llava.SHARD_BYTES", 10_000)
    again = write_random_llava("tiny", tmp_path / "again")
    assert len(list(again.glob("*.safetensors"))) > 10
    other = CheckpointWeights(again)
    assert all(np.array_equal(weights.read(name), other.read(name)) for name in weights.names())


# The contestants


@pytest.fixture(scope="module")
def stage(files):
    return Stage(files, BenchSettings(prompt_of(64), 12, "cpu", 1))


@pytest.mark.slow
@pytest.mark.parametrize("which", BOTH)
def test_torch_and_onnxruntime_give_the_same_answer(stage, which):
    torch_side, onnx_side = torch_eager(stage, which), onnx_runtime(stage, which)
    answers = []
    for turn in range(3):
        image = picture(RoundOptions(0, 3, 0, (112, 112)), turn)
        mine, theirs = torch_side.answer(image), onnx_side.answer(image)
        assert mine.token_ids == theirs.token_ids
        assert mine.prompt_tokens == theirs.prompt_tokens == 128
        assert 0 < mine.prepare_ms < mine.ttft_ms
        assert len(set(mine.token_ids)) > 6
        answers.append(mine.token_ids)
    assert len(set(answers)) == 3  # the image matters


def test_files_are_made_once_and_discarded_when_loaded(stage, tmp_path):
    words = ["--shape", "tiny", "--device", "cpu", "--contestants", "ort", "--prepare"]
    words += ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out.json")]
    assert main(words) == 0
    assert not (tmp_path / "out.json").exists()
    made = {path.parent: path.stat().st_mtime_ns for path in tmp_path.rglob("manifest.json")}
    assert {path.name for path in made} == {"onnx", "onnx-dense"}
    assert main(words) == 0
    assert all((path / "manifest.json").stat().st_mtime_ns == made[path] for path in made)
    files = replace(stage.files, work=tmp_path / "work", discard=True)
    for which in BOTH:
        loaded = onnx_runtime(Stage(files, stage.settings), which)
        assert loaded.notes["provider"] == "cpu"
    assert not any(path.exists() for path in made)
    assert files.checkpoint().exists()


def test_a_failed_contestant_records_its_reason_and_the_others_run(stage, monkeypatch):
    from contestants import CONTESTANTS
    from rivals.base import Answered, Loaded

    def broken(stage, which):
        raise RuntimeError("out of\n memory")

    def short(stage, which):
        return Loaded(lambda image: Answered(1.0, 2.0, 3.0, 127, (1,) * 12))

    def fine(stage, which):
        return Loaded(lambda image: Answered(1.0, 2.0, 3.0, 128, (1,) * 12))

    for name, load in (("ort", broken), ("torch", short), ("torch-compile", fine)):
        monkeypatch.setitem(CONTESTANTS, name, load)
    records = measure(
        ["ort", "torch", "torch-compile"], lambda: stage, RoundOptions(1, 2, 0, (8, 8)), 128
    )
    assert records["ort"].errors == dict.fromkeys(BOTH, "RuntimeError: out of memory")
    assert "read 127 tokens" in records["torch"].errors["dense"]
    assert not records["torch"].runs
    assert [len(records["torch-compile"].runs[which]) for which in BOTH] == [2, 2]


def test_compile_falls_back_and_reports_the_reason(monkeypatch):
    from rivals import torch_models

    def compile_(function, mode, dynamic):
        def compiled(*tensors):
            if mode in broken:
                raise RuntimeError(f"no {mode}")
            return function(*tensors)

        return compiled

    broken = ["reduce-overhead"]
    monkeypatch.setattr(torch, "compile", compile_)
    phase = torch_models.Phase("step", lambda x: x + 1)
    with pytest.raises(torch_models.PhaseError) as failed:
        phase(torch.ones(1))
    phase.next_mode(failed.value.reason)
    assert phase(torch.ones(1)) == 2
    assert phase.notes() == {
        "mode": "default",
        "failed": {"reduce-overhead": "RuntimeError: no reduce-overhead"},
    }
    with pytest.raises(CompExportError, match=r"the step fails: reduce-overhead: .*; default: no"):
        phase.next_mode("no default")


def test_contestants_that_exceed_memory_together_are_measured_in_groups():
    names = ["torch-compile", "ort", "torch", "tensorrt"]
    weights = 24 * 2**30
    assert groups_of(names, None) == [names]
    assert groups_of(names, (weights, 138 * 2**30)) == [
        ["ort", "tensorrt", "torch", "torch-compile"]
    ]
    assert groups_of(names, (weights, 78 * 2**30)) == [
        ["ort", "tensorrt"],
        ["torch", "torch-compile"],
    ]
    assert groups_of(names, (weights, 2**30)) == [["ort"], ["tensorrt"], ["torch", "torch-compile"]]


def test_images_differ_between_rounds_and_repeat_between_runs():
    options = RoundOptions(0, 2, 0, (30, 20))
    first, second = (np.asarray(picture(options, turn)) for turn in (0, 1))
    assert (first != second).any()
    assert np.array_equal(first, np.asarray(picture(options, 0)))
    assert first.shape == (20, 30, 3)


def test_spread_of_measurements():
    spread = Spread.of([float(value) for value in range(11)])
    assert spread == Spread(median=5.0, min=0.0, p10=1.0, p90=9.0, max=10.0)


# The script


@pytest.mark.slow
def test_the_script_measures_a_small_model_on_a_cpu(files, tmp_path):
    out = tmp_path / "results" / "tiny.json"
    words = ["--shape", "tiny", "--device", "cpu", "--threads", "1", "--new-tokens", "4"]
    words += ["--repeats", "3", "--warmup", "1", "--contestants", "ort,torch,tensorrt"]
    words += ["--work", files.work, "--out", out]
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "llava_speed.py", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "TTFT" in done.stdout
    report = json.loads(out.read_text())
    assert list(tmp_path.rglob("*.json")) == [out]
    assert report["flops_ratio"] == pytest.approx(1 / (1 - report["rate"]))
    assert report["flops_ratio"] == report["macs"]["dense"] / report["macs"]["compressed"]
    assert report["target"]["speed_up"] == pytest.approx(0.8 * report["flops_ratio"])
    assert report["workload"]["image_tokens"] + report["workload"]["text_tokens"] == 128
    assert report["device"]["kind"] == "cpu"
    assert report["device"]["name"]
    assert {"python", "torch", "transformers"} <= set(report["versions"])
    rows = report["contestants"]
    assert list(rows) == ["ort", "torch", "tensorrt"]
    for name in ("ort", "torch"):
        for which in BOTH:
            result = rows[name][which]
            assert result["repeats"] == 3
            assert result["same_tokens"] == 4
            for measure_ in MEASURES:
                spread = result[measure_]
                assert 0 < spread["min"] <= spread["p10"] <= spread["median"] <= spread["p90"]
                assert spread["p90"] <= spread["max"]
        ttft = [rows[name][which]["ttft_ms"]["median"] for which in BOTH]
        assert rows[name]["speed_up"]["ttft"] == pytest.approx(ttft[0] / ttft[1])
        share = rows[name]["speed_up"]["ttft"] / report["flops_ratio"]
        assert rows[name]["speed_up_of_flops"]["ttft"] == pytest.approx(share)
        assert rows[name]["target_met"] is (share >= 0.8)
        assert (name in report["target"]["met_by"]) is rows[name]["target_met"]
    refused = rows["tensorrt"]
    assert refused["dense"] is refused["compressed"] is refused["target_met"] is None
    assert "NVIDIA GPU" in refused["errors"]["dense"]


def test_integers_and_openvino_are_measured_and_rivals_need_their_files(tmp_path):
    out = tmp_path / "cpu.json"
    words = [
        "--device",
        "cpu",
        "--shape",
        "tiny",
        "--work",
        str(tmp_path / "work"),
        "--out",
        str(out),
    ]
    words += ["--contestants", "torch-bf16,ort-int8,openvino-int4,genai-int8"]
    few = ("--warmup", "0", "--repeats", "2", "--new-tokens", "3")
    assert main([*words, *few, "--memory"]) == 0
    rows = json.loads(out.read_text())["contestants"]
    whole = (tmp_path / "work").glob("*/checkpoint/*.safetensors")
    halves = sum(path.stat().st_size for path in whole)
    exact = multiplies_exactly()
    if not exact:
        assert "no VNNI" in rows["ort-int8"]["errors"]["dense"]
    for name in ("openvino-int4", *(("ort-int8",) if exact else ())):
        for which in BOTH:
            result = rows[name][which]
            assert result["repeats"] == 2
            assert result["tpot_ms"]["min"] > 0
            assert result["notes"]["bytes"] < halves
            assert result["peak_rss_mb"] > 30  # an interpreter and a runtime need this much
        assert rows[name]["speed_up"]["ttft"] > 0
    assert rows["torch-bf16"]["dense"]["notes"]["attention"] == "sdpa"
    refused = rows["genai-int8"]["errors"]
    assert "--genai DIR with DIR/int8" in refused["dense"]
    assert "does not know slim models" in refused["compressed"]


def test_without_llama_cpp_the_others_are_measured(tmp_path, monkeypatch, capsys):
    for name in ("llama_cpp", "gguf"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    out = tmp_path / "cpu.json"
    words = ["--device", "cpu", "--shape", "tiny", "--work", str(tmp_path / "work")]
    words += ["--contestants", "ort,llamacpp-q4_0", "--out", str(out)]
    assert main([*words, "--prepare"]) == 0
    assert "gguf is not installed: pip install llama-cpp-python gguf" in capsys.readouterr().err
    assert main([*words, "--warmup", "0", "--repeats", "1", "--new-tokens", "2"]) == 0
    rows = json.loads(out.read_text())["contestants"]
    refused = rows["llamacpp-q4_0"]["errors"]
    assert refused["dense"] == "llama_cpp is not installed: pip install llama-cpp-python gguf"
    assert "one width for all of its layers" in refused["compressed"]
    assert rows["ort"]["dense"]["repeats"] == 1


def test_without_onnxruntime_genai_the_others_are_measured(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)  # as if it were not installed
    out = tmp_path / "cpu.json"
    words = ["--device", "cpu", "--shape", "tiny", "--work", str(tmp_path / "work")]
    words += ["--contestants", "ort,ortgenai-int8", "--out", str(out)]
    assert main([*words, "--warmup", "0", "--repeats", "1", "--new-tokens", "2"]) == 0
    rows = json.loads(out.read_text())["contestants"]
    refused = rows["ortgenai-int8"]["errors"]
    assert refused["dense"] == (
        "onnxruntime_genai is not installed: pip install onnxruntime-genai onnxscript"
    )
    assert "one width for all of its layers" in refused["compressed"]
    assert rows["ort"]["dense"]["repeats"] == 1
    assert not list((tmp_path / "work").rglob("ortgenai*"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused_in_one_line(tmp_path, capsys):
    out = tmp_path / "gpu.json"
    assert main(["--work", str(tmp_path / "work"), "--out", str(out)]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("Error: --device cuda: ")
    assert output.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--contestants", "ort,onnx"], "--contestants 'ort,onnx': choose from ort, "),
        (["--repeats", "0"], "--repeats 0: choose 1 or more"),
        (["--picture", "640"], "--picture '640': write it as 640x480"),
        (["--text-tokens", "5"], "--text-tokens 5: choose 6 or more"),
        (["--rate", "0.99"], "--rate 0.99: this kind of plan removes up to"),
    ],
)
def test_options_out_of_range_are_refused(words, message, tmp_path, capsys):
    out = str(tmp_path / "out.json")
    assert main(["--device", "cpu", "--shape", "tiny", "--out", out, *words]) == 1
    assert capsys.readouterr().err.startswith(f"Error: {message}")
    assert not list(tmp_path.iterdir())
