"""Engines of CLIP and of BLIP's four tasks through every verb, on small random models.

They are built by TensorRT for RTX; where something runs them, the simulated GPU does.
"""

import json
import shutil

import pytest
from click.testing import CliRunner

from comp.cli import cli
from comp.data.embedded import embedded_examples
from comp.errors import CompExportError
from export.tensorrt.manifest import read_engine_manifest
from serve.bench import compare as bench
from serve.bench.cold_start import Probe
from tests.fake_gpu import install
from tests.small_runs import KINDS

pytest.importorskip("tensorrt_rtx")
pytestmark = [
    pytest.mark.slow,
    # A warning of TensorRT's own, for every Python class derived from one of its classes.
    pytest.mark.filterwarnings("ignore:Use del obj instead:DeprecationWarning"),
]
TASK = {"clip": "retrieval"}
BACKEND = ("--backend", "tensorrt")
# Attention of each engine of the dense model: fused, except with a single query.
FUSED, ALONE = "fused", "decomposed"
DENSE = {
    "vision_model": [FUSED] * 3,
    "text_encoder": [FUSED] * 6,
    "decoder_model": [FUSED] * 5 + [ALONE],
    "cross_kv": [],
    "text_model": [FUSED, FUSED, ALONE],
    "itm_model": [FUSED] * 4 + [ALONE] * 2,
}
ENGINES = {
    "clip": {"vision_model", "text_model"},
    "question": {"vision_model", "text_encoder", "cross_kv", "decoder_model"},
    "caption": {"vision_model", "cross_kv", "decoder_model"},
    "statement": {"vision_model", "text_encoder"},
    "retrieval": {"vision_model", "text_model", "itm_model"},
}


def call(*arguments):
    return CliRunner().invoke(cli, [str(each) for each in arguments], catch_exceptions=False)


def called(*arguments):
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def verified(run, questions):
    """Return the report; half precision may decide otherwise where a random model is undecided."""
    return json.loads(
        call("verify", run, "--questions", questions, "--answer-seconds", 0, "--json").stdout
    )


@pytest.fixture(scope="module")
def runs(fresh_run):
    """A run of each kind with engines in half precision, and the output of the command."""
    made = {}

    def of(kind):
        if kind not in made:
            run = fresh_run(kind)
            for artifact in run.glob("onnx*"):
                shutil.rmtree(artifact)
            called("onnx", run, "--no-check", "--flavour", "standard", "--precision", "float16")
            limits = ("--max-batch", "4")
            made[kind] = run, called("tensorrt", run, "--compute-capability", "8.9", *limits)
        return made[kind]

    return of


@pytest.fixture
def on_a_gpu(runs, monkeypatch):
    def of(kind):
        run, _ = runs(kind)
        install(monkeypatch, [run / "tensorrt", run / "tensorrt-dense"])
        return run

    return of


@pytest.fixture
def pictures(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for number, path in enumerate(paths):
        embedded_examples("caption", "test", 2)[number].image.save(path)
    return paths


@pytest.mark.parametrize("kind", KINDS)
def test_every_engine_is_built(runs, kind):
    run, built = runs(kind)
    whole, cut = (built["engines"][name] for name in ("tensorrt-dense", "tensorrt"))
    assert set(whole["engines"]) == set(cut["engines"]) == ENGINES[kind]
    for name, engine in whole["engines"].items():
        attention = [block["attention"] for block in engine["blocks"]]
        wanted = DENSE[name]
        if kind == "clip":
            wanted = [FUSED] * 3
        elif kind == "statement" and name == "text_encoder":
            wanted = [FUSED] * 6 + [ALONE] * 3
        assert attention == wanted, name
    ranking = [block for engine in cut["engines"].values() for block in engine["blocks"]]
    if (
        kind != "caption"
    ):  # ranking needs the attention weights, which a fused kernel does not return
        assert sum(b["attention"] == FUSED for b in ranking) < sum(
            form == FUSED for name in ENGINES[kind] for form in DENSE[name]
        )
    if kind == "clip":
        for engine in cut["engines"].values():
            attention = [block["attention"] for block in engine["blocks"]]
            assert attention == [ALONE, ALONE, FUSED]
    manifest = read_engine_manifest(run / "tensorrt")
    assert manifest.artifact.task == TASK.get(kind, kind)
    assert manifest.limits.max_batch == 4
    assert manifest.limits.images == (2 if kind == "statement" else 1)
    assert manifest.limits.max_prompt == 64
    (profile,) = manifest.engines["vision_model"].profiles
    most = 8 if kind == "statement" else 4
    assert [shape[0] for shape in profile.shapes["pixel_values"]][::2] == [1, most]


def test_verify_lists_links_that_are_not_compared(runs):
    run, _ = runs("clip")
    report = verified(run, 2)
    assert {each["name"] for each in report["skipped"]} == {
        "TensorRT (tensorrt)",
        "TensorRT (tensorrt-dense)",
    }
    assert all("NVIDIA GPU" in each["reason"] for each in report["skipped"])


@pytest.mark.parametrize("kind", KINDS)
def test_verify_has_engines_as_its_last_link(on_a_gpu, kind):
    run = on_a_gpu(kind)
    report = verified(run, 6)
    assert not report["skipped"]
    links = {link["name"]: link for link in report["links"]}
    for side, name in (("slim", ""), ("dense", "-dense")):
        engines = links[f"{side} torch = TensorRT (tensorrt{name})"]
        graphs = links[f"{side} torch = ONNX Runtime (onnx{name}-standard-float16)"]
        assert engines["max_logit_difference"] == pytest.approx(
            graphs["max_logit_difference"], abs=1e-3
        )
        assert engines["kept"] == graphs["kept"]
        assert engines["ok"] == graphs["ok"]
        other = links[f"{side} torch = OpenVINO (onnx{name}-standard-float16)"]
        assert other["max_logit_difference"] < 0.05
        marked = read_engine_manifest(run / f"tensorrt{name}").verified
        assert marked.ok == (engines["ok"] and (side == "dense" or report["links"][0]["ok"]))
    assert set(report["engine_layers"]) == {"tensorrt", "tensorrt-dense"}
    assert set(report["engine_layers"]["tensorrt"]) == ENGINES[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_run_and_eval_use_engines(on_a_gpu, pictures, kind):
    run, task = on_a_gpu(kind), TASK.get(kind, kind)
    images = pictures if task in ("statement", "retrieval") else pictures[:1]
    words = [] if task == "caption" else ["there is a fox"]
    options = [word for image in images for word in ("--image", image)]
    options += [word for text in words for word in ("--prompt", text)]
    graphs = ("--flavour", "standard", "--precision", "float16")
    actual, expected = (called("run", run, *options, *form) for form in (BACKEND, graphs))
    assert (actual["backend"], actual["device"]) == ("tensorrt", "cuda")
    answer_key = {"question": "token_ids", "caption": "token_ids", "statement": "verdict"}
    key = answer_key.get(task, "kept")
    assert actual[key] == expected[key]
    some = ("--limit", "6", "--gallery", "6", "--batch-size", "4", "--max-new-tokens", "4")
    actual, expected = (called("eval", run, *some, *form) for form in (BACKEND, graphs))
    assert actual["backend"] == "tensorrt"
    assert actual["compressed"] == expected["compressed"]
    assert actual["dense"] == expected["dense"]
    assert (run / "reports" / "eval-tensorrt.json").is_file()


@pytest.mark.parametrize("kind", ["clip", "question", "statement"])
def test_bench_uses_engines(on_a_gpu, kind, monkeypatch):
    """Fresh processes are left out, because they have no simulated GPU."""
    monkeypatch.setattr(bench, "probe", lambda *words: Probe(1.0, 1.0, 1.0))
    short = ("--repeats", "2", "--warmup", "1", "--cold-starts", "1", "--new-tokens", "4")
    report = called("bench", on_a_gpu(kind), *short, *BACKEND)
    assert report["backend"] == "tensorrt"
    assert 0 < report["flops_ratio"] < 0.6
    assert report["speedup"]["ttft"] > 0


def test_unreachable_limits_are_refused(runs):
    run, _ = runs("question")
    for option, message in (
        (("--max-prompt", "65"), "the model has 64 positions"),
        (("--max-new-tokens", "65"), "the model has 64 positions"),
        (("--images", "2"), "a question is about 1"),
    ):
        with pytest.raises(CompExportError, match=message):
            call("tensorrt", run, "--compute-capability", "8.9", "--force", *option)
