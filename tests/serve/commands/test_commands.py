"""``run``, ``eval`` and ``bench`` on a run directory."""

import json

import pytest
from click.testing import CliRunner

from comp.cli import cli
from comp.errors import CompExportError
from export.exporter import Origin, artifact_directory, export_artifact
from export.graph.builder import Target
from serve.artifacts import ArtifactVariant
from serve.engines.llava import Engine
from serve.generation.options import GenerationOptions


def invoke(*arguments):
    return CliRunner().invoke(cli, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture
def image_file(picture, tmp_path):
    path = tmp_path / "picture.png"
    picture.save(path)
    return path


def test_run_prints_one_json_object(run, image_file, compressed):
    done = invoke("run", run, "--image", image_file, "--prompt", "where is the fox?", "--json")
    result = json.loads(done.stdout)
    answer = compressed.generate([image_file], "where is the fox?", GenerationOptions())
    assert result["text"] == answer.text
    assert result["token_ids"] == list(answer.token_ids)
    assert result["kept"] == {str(m): k.tolist() for m, k in answer.kept.by_layer.items()}
    assert result["ttft_ms"] > 0
    assert result["tpot_ms"] >= 0


def test_run_streams_the_answer(run, image_file, dense):
    words = ("--image", image_file, "--prompt", "where?", "--dense", "--max-new-tokens", 6)
    done = invoke("run", run, *words)
    answer = dense.generate([image_file], "where?", GenerationOptions(max_new_tokens=6))
    assert done.stdout == answer.text + "\n"
    assert "ms a token" in done.stderr


def test_run_uses_the_sampling_options(run, image_file, compressed):
    words = ["--temperature", 1.5, "--top-p", 0.9, "--seed", 3, "--keep-factor", 0.5]
    done = invoke("run", run, "--image", image_file, "--prompt", "a?", "--json", *words)
    options = GenerationOptions(temperature=1.5, top_p=0.9, seed=3, keep_factor=0.5)
    result = json.loads(done.stdout)
    assert result["text"] == compressed.generate([image_file], "a?", options).text


def test_eval_counts_the_answers_of_the_engine(run, tmp_path, dense, compressed, picture):
    """On questions with the dense engine's own answers, dense is always right. Short: exact match."""
    options = GenerationOptions(max_new_tokens=3)
    lines = []
    for index, question in enumerate(["where?", "what is it?", "how many?", "is it?"]):
        picture.save(tmp_path / f"{index}.png")
        answer = dense.generate([picture], question, options).text
        record = {"image": f"{index}.png", "question": question, "answer": answer, "kind": question}
        lines.append(json.dumps(record))
    data = tmp_path / "own.jsonl"
    data.write_text("\n".join(lines))
    done = invoke("eval", run, "--data", data, "--max-new-tokens", 3, "--json", "--batch-size", 2)
    report = json.loads(done.stdout)
    assert report["dense"]["accuracy"] == 1
    assert report["dense"]["n"] == 4
    assert set(report["dense"]["by_kind"]) == {"where?", "what is it?", "how many?", "is it?"}
    assert report["dense"]["ci95"] == pytest.approx([0.5101, 1.0], abs=1e-4)
    assert 0 <= report["compressed"]["accuracy"] <= 1
    assert json.loads((run / "reports" / "eval.json").read_text()) == report
    assert "| **all** | 4 |" in (run / "reports" / "eval.md").read_text()
    assert "100.0 %" in invoke("eval", run, "--data", data, "--max-new-tokens", 3).stdout


def test_eval_runs_on_emoji_scenes(run):
    done = invoke("eval", run, "--limit", 24, "--max-new-tokens", 2, "--json")
    report = json.loads(done.stdout)
    assert report["data"] == {"name": "EmojiScenes test", "n": 24}
    assert len(report["compressed"]["by_kind"]) == 12
    assert report["compressed"]["n"] == 24


def test_eval_refuses_contradicting_options(run, tmp_path):
    data = tmp_path / "a.jsonl"
    data.write_text('{"image": "a.png", "question": "what?", "answer": "that"}\n')
    with pytest.raises(CompExportError, match="has no splits: leave it out"):
        invoke("eval", run, "--data", data, "--split", "test")
    with pytest.raises(CompExportError, match="--images"):
        invoke("eval", run, "--images", tmp_path)


def test_bench_reports_both_models(run):
    words = ("--repeats", 3, "--warmup", 1, "--new-tokens", 4, "--cold-starts", 1, "--threads", 1)
    done = invoke("bench", run, *words, "--json")
    report = json.loads(done.stdout)
    for which in ("dense", "compressed"):
        measured = report[which]
        assert measured["ttft_ms"] > 0
        assert measured["tpot_ms"] > 0
        assert measured["cold_start_ms"] > measured["ttft_ms"]
        assert measured["peak_rss_mb"] > 20
        spread = measured["spread"]["ttft_ms"]
        assert spread["min"] <= spread["median"] == measured["ttft_ms"] <= spread["p90"]
        assert spread["p90"] <= spread["max"]
    sizes = {which: report[which]["size_mb"] for which in ("dense", "compressed")}
    assert sizes["compressed"] < sizes["dense"]
    dense, compressed = report["dense"], report["compressed"]
    assert report["speedup"]["ttft"] == pytest.approx(dense["ttft_ms"] / compressed["ttft_ms"])
    assert report["verified"] is False
    assert 0 < report["flops_ratio"] < 1
    assert report["threads"] == 1
    assert json.loads((run / "reports" / "bench.json").read_text()) == report
    assert "Not verified" in (run / "reports" / "bench.md").read_text()
    assert (run / "reports" / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_bench_measures_backends_side_by_side(run, checkpoint, plan):
    """A second variant of the run is measured in the same rounds; unknown names are refused."""
    half = Target(precision="float16")
    for dense, origin, cut in ((True, Origin("t"), None), (False, Origin.of_plan(plan), plan)):
        out = artifact_directory(run, dense, half)
        export_artifact(checkpoint.path, out, origin, half, plan=cut)
    few = ("--repeats", 2, "--warmup", 1, "--cold-starts", 1, "--new-tokens", 4, "--threads", 1)
    report = json.loads(
        invoke("bench", run, *few, "--against", "onnxruntime:cpu:float16", "--json").stdout
    )
    (other,) = report["against"]
    assert (report["name"], other["name"]) == (
        "onnxruntime float32",
        "onnxruntime cpu float16",
    )
    assert other["artifact"]["precision"] == "float16"
    assert other["dense"]["size_mb"] < report["dense"]["size_mb"]
    assert all(other[which]["ttft_ms"] > 0 for which in ("dense", "compressed"))
    page = (run / "reports" / "bench.md").read_text()
    assert "| onnxruntime cpu float16 |" in page
    with pytest.raises(CompExportError, match="is no backend"):
        invoke("bench", run, *few, "--against", "coreml")
    with pytest.raises(CompExportError, match="comp-export tensorrt"):
        invoke("bench", run, *few, "--against", "tensorrt")


def test_missing_artifacts_name_the_command(run):
    (run / "onnx").unlink()
    with pytest.raises(CompExportError, match="comp-export onnx"):
        invoke("eval", run)


def test_a_failing_fresh_process_is_one_line(run, picture):
    from serve.bench.cold_start import probe
    from serve.bench.request import BenchRequest

    with pytest.raises(CompExportError, match="failed") as caught:
        probe(run / "nothing", BenchRequest("question", (picture,), ("where?",), 2), "cpu", 1)
    assert "no artifact" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_engines_keep_no_state_between_requests(run, picture):
    engine = Engine.load(run / "onnx", device="cpu", threads=1)
    first = engine.generate([picture], "where?", GenerationOptions(max_new_tokens=6))
    engine.generate([picture, picture], "else?", GenerationOptions(max_new_tokens=3, temperature=2))
    again = engine.generate([picture], "where?", GenerationOptions(max_new_tokens=6))
    assert first.token_ids == again.token_ids


def test_variants_have_the_directories_of_the_exporter(tmp_path):
    for flavour in ("onnxruntime", "standard"):
        for precision in ("float32", "float16"):
            for which in ("dense", "compressed"):
                written = artifact_directory(tmp_path, which == "dense", Target(flavour, precision))
                assert ArtifactVariant(flavour, precision).directory(tmp_path, which) == written


def test_a_missing_variant_names_the_command(run, image_file):
    words = ("--prompt", "a?", "--flavour", "standard", "--precision", "float16")
    with pytest.raises(CompExportError, match="--flavour standard --precision float16"):
        invoke("run", run, "--image", image_file, *words)


def test_run_uses_the_requested_variant(run, image_file, checkpoint, plan):
    out = run / "onnx-standard"
    export_artifact(checkpoint.path, out, Origin.of_plan(plan), Target("standard"), plan)
    words = ("--image", image_file, "--prompt", "where?", "--json", "--flavour", "standard")
    result = json.loads(invoke("run", run, *words).stdout)
    answer = Engine.load(out, device="cpu", threads=1).generate([image_file], "where?")
    assert result["text"] == answer.text
