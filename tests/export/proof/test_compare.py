"""``comp-export onnx`` and ``verify`` on a run directory, and the comparison itself."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from comp.commands.inspect import command as inspect_command
from comp.errors import CompExportError
from comp.plan import PruningPlan
from comp.runs import RUN_VERSION
from export.artifact.load import load_artifact
from export.artifact.manifest import sha256_of
from export.commands.tensorrt import command as tensorrt_command
from export.openvino.graph import computes_bfloat16
from export.proof.compare import Answered, Greedy, Link, compare, is_tie
from export.proof.outputs import Output
from export.tensorrt.gpu import gpu_capability
from export.tensorrt.manifest import load_engines
from export.weights.slim import write_slim_checkpoint
from serve.commands.onnx import command as onnx_command
from serve.commands.verify import command as verify_command
from tests.export.tiny import make_plan, save_checkpoint, tiny_config, tiny_model
from tests.fake_gpu import install

QUESTIONS = 8
UNANSWERED = ("--answer-seconds", "0")  # by transformers: the first links are tested elsewhere


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of a tiny model whose slim weights were also trained."""
    home = tmp_path_factory.mktemp("runs")
    model = tiny_model(tiny_config(kv_heads=2), seed=6)
    dense = save_checkpoint(model, home / "dense")
    plan: PruningPlan = make_plan(model.config, vision=True, seed=7, model=str(dense))
    run = home / "tiny-0.5"
    run.mkdir()
    plan.save(run / "plan.json")
    tuned = tiny_model(tiny_config(kv_heads=2), seed=6)
    for parameter in tuned.parameters():
        parameter.data += 0.01 * parameter.data.sign()
    shutil.copytree(dense, home / "tuned")
    tuned.save_pretrained(home / "tuned")
    write_slim_checkpoint(home / "tuned", plan, run / "checkpoint")
    record = {"version": RUN_VERSION, "model": str(dense), "model_path": str(dense)}
    (run / "run.json").write_text(json.dumps(record))
    return run


def invoke(command, *words):
    result = CliRunner().invoke(command, [str(word) for word in words], catch_exceptions=False)
    return result.exit_code, result.stdout


@pytest.fixture(scope="module")
def exported(run):
    status, text = invoke(onnx_command, run, "--json")
    assert status == 0
    return json.loads(text)


def test_onnx_writes_both_artifacts(run, exported):
    assert {path.name for path in run.iterdir()} >= {"onnx", "onnx-dense"}
    slim = load_artifact(run / "onnx").manifest
    dense = load_artifact(run / "onnx-dense").manifest
    assert (slim.dense, dense.dense) == (False, True)
    assert len(slim.decoder.drops) == 2
    assert dense.decoder.drops == ()
    assert slim.rate == 0.5
    assert slim.macs.artifact < dense.macs.artifact == dense.macs.dense
    assert slim.params < dense.params
    assert slim.verified is None
    assert all(name.endswith((".onnx", ".data", ".json")) for name in exported["files"])
    assert slim.chat_template.source == (run / "checkpoint" / "chat_template.jinja").read_text()
    assert slim.chat_template.tokens["bos_token"] == "<s>"


def test_onnx_refuses_to_overwrite(run, exported):
    with pytest.raises(CompExportError, match="--force"):
        invoke(onnx_command, run)
    assert invoke(onnx_command, run, "--force", "--no-check", "--json")[0] == 0


def test_verify_passes_and_is_recorded(run, exported):
    status, text = invoke(
        onnx_command, run, "--no-check", "--flavour", "standard", "--no-dense", "--json"
    )
    assert status == 0
    status, text = invoke(verify_command, run, "--questions", QUESTIONS, "--json")
    report = json.loads(text)
    assert status == 0
    assert report["ok"]
    names = [link["name"] for link in report["links"]]
    assert names[0] == "masked torch = slim torch"
    assert names[1:] == [
        "slim torch = ONNX Runtime (onnx)",
        "dense torch = ONNX Runtime (onnx-dense)",
        "slim torch = ONNX Runtime (onnx-standard)",
        "slim torch = ONNX Runtime, caches in place (onnx-standard)",
        "slim torch = OpenVINO (onnx-standard)",
    ]
    assert report["skipped"] == []
    for link in report["links"]:
        assert link["questions"] == QUESTIONS
        assert link["max_logit_difference"] <= 1e-3
        assert link["answers"]["identical"] == QUESTIONS
    assert json.loads((run / "reports" / "verify.json").read_text()) == report
    assert "holds" in (run / "reports" / "verify.md").read_text()
    for name in ("onnx", "onnx-dense", "onnx-standard"):
        verified = load_artifact(run / name).manifest.verified
        assert verified.ok
        assert verified.report_sha256 == sha256_of(run / "reports" / "verify.json")
    shutil.rmtree(run / "onnx-standard")


@pytest.fixture(scope="module")
def with_engines(run, exported, tmp_path_factory):
    """The run with standard artifacts and their engines, in float32."""
    pytest.importorskip("tensorrt_rtx", reason="builds engines")
    actual = tmp_path_factory.mktemp("with-engines") / "tiny-0.5"
    shutil.copytree(run, actual)
    words = ("--precision", "float32", "--json")
    assert invoke(onnx_command, actual, "--no-check", "--flavour", "standard", *words)[0] == 0
    limits = ("--max-prompt", 64, "--max-new-tokens", 32, "--compute-capability", "8.9")
    assert invoke(tensorrt_command, actual, *limits, *words)[0] == 0
    return actual


def test_inspect_shows_engines(with_engines):
    status, text = invoke(inspect_command, with_engines, "--no-figures")
    assert status == 0
    for words in ("tensorrt_rtx", "compute capability 8.9", "weights embedded", "decomposed"):
        assert words in text
    assert "1×0" in text  # a profile's smallest number of image tokens
    status, text = invoke(inspect_command, with_engines / "tensorrt-float32", "--json")
    assert json.loads(text)["manifest"]["kind"] == "tensorrt"


@pytest.mark.skipif(gpu_capability() is not None, reason="there is a GPU here")
def test_engines_are_not_verified_without_a_gpu(with_engines):
    status, text = invoke(verify_command, with_engines, *UNANSWERED, "--questions", 2, "--json")
    assert status == 0
    skipped = json.loads(text)["skipped"]
    assert [each["name"] for each in skipped] == [
        "TensorRT (tensorrt-dense-float32)",
        "TensorRT (tensorrt-float32)",
    ]
    assert all("NVIDIA GPU" in each["reason"] for each in skipped)
    assert "Not compared: TensorRT" in (with_engines / "reports" / "verify.md").read_text()
    assert load_engines(with_engines / "tensorrt-float32").manifest.verified is None


def test_tensorrt_is_the_last_link(with_engines, monkeypatch):
    """Use a simulated GPU, where ONNX Runtime computes the graphs of the engines."""
    directories = [with_engines / name for name in ("tensorrt-float32", "tensorrt-dense-float32")]
    install(monkeypatch, directories)
    status, text = invoke(verify_command, with_engines, *UNANSWERED, "--questions", 4, "--json")
    report = json.loads(text)
    assert status == 0
    assert [link["name"] for link in report["links"]][-2:] == [
        "dense torch = TensorRT (tensorrt-dense-float32)",
        "slim torch = TensorRT (tensorrt-float32)",
    ]
    for link in report["links"][-2:]:
        assert link["max_logit_difference"] <= 1e-3
        assert link["answers"]["identical"] == 4
    for directory in directories:
        assert load_engines(directory).manifest.verified.ok
        layers = report["engine_layers"][directory.name]
        assert set(layers) == {"vision_encoder", "embed_tokens", "decoder"}
        assert "logits_mha" in layers["decoder"]
        assert "reformat" in layers["decoder"]


def test_engines_with_other_answers_fail_verification(with_engines, monkeypatch, tmp_path):
    """The compressed engines run the dense graphs: verify fails and marks only them."""
    run = tmp_path / "tiny-0.5"
    shutil.copytree(with_engines, run)
    _, module = install(monkeypatch, [run / "tensorrt-float32", run / "tensorrt-dense-float32"])
    compressed = run / "onnx-standard" / "vision_encoder.onnx"
    dense = run / "onnx-dense-standard" / "vision_encoder.onnx"
    for data, (graph, entry) in module.known.items():
        if graph == compressed:
            module.known[data] = (dense, entry)
    status, text = invoke(verify_command, run, *UNANSWERED, "--questions", 4, "--json")
    assert status == 1
    artifacts = json.loads(text)["artifacts"]
    assert artifacts["tensorrt-dense-float32"]
    assert not artifacts["tensorrt-float32"]
    assert not load_engines(run / "tensorrt-float32").manifest.verified.ok


def test_bfloat16_artifacts_are_compared_where_the_cpu_supports_it(run, exported, tmp_path):
    actual = tmp_path / "tiny-0.5"
    shutil.copytree(run, actual)
    words = ("--flavour", "standard", "--precision", "bfloat16", "--no-dense", "--json")
    assert invoke(onnx_command, actual, "--no-check", *words)[0] == 0
    status, text = invoke(verify_command, actual, *UNANSWERED, "--questions", 8, "--json")
    assert status == 0
    report = json.loads(text)
    skipped = [each["name"] for each in report["skipped"]]
    assert "transformers = serve (onnx-standard-bfloat16)" in skipped
    assert "ONNX Runtime (onnx-standard-bfloat16)" in skipped
    if computes_bfloat16():
        link = report["links"][-1]
        assert link["name"] == "slim torch = OpenVINO (onnx-standard-bfloat16)"
        assert link["precision"] == "bfloat16"
        assert 1e-4 < link["max_logit_difference"] < 1
    else:
        assert "OpenVINO (onnx-standard-bfloat16)" in skipped
    with pytest.raises(CompExportError, match="--flavour standard"):
        invoke(onnx_command, actual, "--no-check", "--precision", "bfloat16")


def test_without_openvino_it_is_listed_as_not_compared(run, exported, tmp_path, monkeypatch):
    actual = tmp_path / "tiny-0.5"
    shutil.copytree(run, actual)
    words = ("--flavour", "standard", "--no-dense", "--json")
    assert invoke(onnx_command, actual, "--no-check", *words)[0] == 0
    monkeypatch.setitem(sys.modules, "openvino", None)
    status, text = invoke(verify_command, actual, *UNANSWERED, "--questions", 2, "--json")
    assert status == 0
    (skipped,) = json.loads(text)["skipped"]
    assert skipped["name"] == "OpenVINO (onnx-standard)"
    assert "[openvino]'" in skipped["reason"]


def test_verify_fails_on_other_weights(run, exported, tmp_path):
    """An artifact with other weights than the checkpoint's gives status 1 and a message."""
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    plan = PruningPlan.load(broken / "plan.json")
    dense = json.loads((broken / "run.json").read_text())["model"]
    write_slim_checkpoint(type(run)(dense), plan, broken / "checkpoint")  # without the training
    status, text = invoke(verify_command, broken, *UNANSWERED, "--questions", 4, "--json")
    assert status == 1
    report = json.loads(text)
    assert not report["ok"]
    assert not load_artifact(broken / "onnx").manifest.verified.ok
    assert load_artifact(broken / "onnx-dense").manifest.verified.ok


def test_verify_refuses_damage(run, exported, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    data = broken / "onnx" / "decoder_model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(CompExportError, match=r"decoder_model\.onnx\.data has"):
        invoke(verify_command, broken)


def test_verify_without_artifacts_is_refused(run, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(run, bare, ignore=shutil.ignore_patterns("onnx*"))
    with pytest.raises(CompExportError, match="comp-export onnx"):
        invoke(verify_command, bare)


PLACES = (("language", 1),)


def answered(kept, logits=(0.0, 1.0), tokens=(1,), scores=None):
    return Answered(
        (Output("logits", np.array([logits], np.float64)),),
        [np.array(kept)],
        [] if scores is None else [np.array(scores)],
        list(tokens),
    )


def link_of(first, second) -> Link:
    return compare("link", "float32", PLACES, [answered([0, 1]), first], [answered([0, 1]), second])


def test_link_reports_differences():
    assert link_of(answered([0, 2]), answered([0, 2])).ok
    assert not link_of(answered([0, 2]), answered([0, 1])).ok
    assert not link_of(answered([0]), answered([0], logits=(0, 1.002))).ok
    assert not link_of(answered([0]), answered([0], logits=(0, np.nan))).ok
    assert not link_of(answered([0]), answered([0], tokens=(2,))).ok


def test_ties_are_counted_and_reported():
    scores = [0.1, 0.3, 0.3 + 5e-7, 0.2]
    tied = link_of(answered([1, 3], scores=scores), answered([2, 3], logits=(9, 9), tokens=(7,)))
    assert tied.ok
    assert tied.to_dict()["tied"] == [1]
    assert tied.to_dict()["kept"][0]["identical"] == 1
    clear = link_of(answered([1, 3], scores=[0.1, 0.3, 0.3001, 0.2]), answered([2, 3]))
    assert not clear.ok
    assert not is_tie(np.array([1]), np.array([1, 2]), np.zeros(4), 1)
    only_ties = compare("link", "float32", PLACES, [answered([1], scores=scores)], [answered([2])])
    assert not only_ties.ok  # nothing was compared


def test_ties_of_images_and_texts_are_counted_separately():
    """Two swaps of equal scores, which are far from each other."""
    scores = np.array([0.3, 0.3, 0.7, 0.7, 0.9])
    first, second = np.array([0, 2, 4]), np.array([1, 3, 4])
    of_image = np.array([True, True, False, False, False])
    assert not is_tie(first, second, scores, 1e-6)
    assert is_tie(first, second, scores, 1e-6, of_image)
    assert not is_tie(
        first, np.array([0, 1, 4]), np.zeros(5), 1e-6, of_image
    )  # one kind for the other
    gone = np.array([np.nan, 0.3, 0.7, 0.7, 0.9])
    assert not is_tie(first, second, gone, 1e-6, of_image)
    actual = replace(answered([1, 3, 4]), of_image=of_image)
    requested = replace(answered([0, 2, 4], scores=scores), of_image=of_image)
    assert link_of(requested, actual).to_dict()["tied"] == [1]


def test_two_roundings_add_their_tolerances():
    first, second = answered([1, 3], scores=[0.1, 0.3, 0.33, 0.2]), answered([2, 3])
    requested = [[answered([0, 1]), each] for each in (first, second)]
    once, twice = (
        compare("link", "int8", PLACES, *requested, bfloat16=also) for also in (False, True)
    )
    assert not once.ok
    assert twice.ok
    assert twice.to_dict()["tied"] == [1]
    assert twice.bounds.logits == 2 * once.bounds.logits
    assert twice.bounds.cosine == pytest.approx(4 * once.bounds.cosine)  # angles add up


def test_texts_can_differ_after_a_near_tie():
    def compared(tokens, margins):
        return replace(answered([0], tokens=tokens), step_margins=margins)

    text = compared((3, 5, 7), [2.0, 1e-4, 3.0])
    assert link_of(text, answered([0], tokens=(3, 6, 8))).to_dict()["tied"] == [1]
    assert not link_of(text, answered([0], tokens=(4, 6, 8))).ok  # differs earlier, at a clear word
    assert not link_of(text, answered([0], tokens=(3, 5, 8))).ok
    assert not link_of(text, answered([0], tokens=(3, 5))).ok  # ends early where all agree


def test_greedy_returns_the_likeliest_token_and_its_margin():
    text = Greedy()
    assert text.add(np.array([0.5, 2.0, -1.0, 1.25], np.float32)) == 1
    assert text.add(np.array([3.0, 3.0], np.float32)) == 0
    assert (text.tokens, text.margins) == ([1, 0], [0.75, 0.0])


def test_a_choice_of_pivots_within_rounding_is_a_tie():
    scores = [0.1, 0.9, 0.5, 0.2]

    def ranked(margin, kept):
        return replace(answered(kept, scores=scores), ranking_margins=[margin])

    assert link_of(ranked(5e-7, [1, 2]), answered([0, 3], tokens=(7,))).to_dict()["tied"] == [1]
    assert not link_of(ranked(1e-3, [1, 2]), answered([0, 3])).ok
    assert not link_of(
        ranked(5e-7, [1, 2]), answered([1])
    ).ok  # the count does not depend on rounding


def test_a_run_without_its_dense_model_is_verified_partially(run, exported, tmp_path):
    actual = tmp_path / "tiny-0.5"
    shutil.copytree(run, actual)
    record = json.loads((actual / "run.json").read_text())
    record["model_path"] = str(tmp_path / "moved-away")
    (actual / "run.json").write_text(json.dumps(record))
    status, text = invoke(verify_command, actual, *UNANSWERED, "--questions", 2, "--json")
    report = json.loads(text)
    assert status == 0
    assert [link["name"] for link in report["first_links"]] == [
        "transformers, slim checkpoint = serve (onnx)"
    ]
    assert [link["name"] for link in report["links"]] == ["slim torch = ONNX Runtime (onnx)"]
    skipped = {each["name"]: each["reason"] for each in report["skipped"]}
    assert set(skipped) == {
        "transformers",
        "masked torch = slim torch",
        "dense torch = ONNX Runtime (onnx-dense)",
    }
    assert all("no longer at" in reason for reason in skipped.values())
    assert report["artifacts"] == {"onnx": True}
    written = (actual / "reports" / "verify.md").read_text()
    assert "Not compared: masked torch = slim torch" in written
