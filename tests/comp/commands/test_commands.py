"""models, flops, inspect and data preview, as a user calls them."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from comp.checkpoints.locate import ALIASES, EMBEDDED
from comp.cli import main
from comp.errors import CompExportError
from comp.figures.run_figures import (
    read_stages,
    structure_figure,
    tokens_by_block,
    trajectory_figure,
)
from comp.plan import BlockPlan, DropPlan, PruningPlan, Workload
from comp.registry.families import FAMILIES, family_of
from comp.registry.methods import METHODS, method_called


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in arguments])
    assert isinstance(end.value.code, int)
    out, err = capsys.readouterr()
    return end.value.code, out, err


def call_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    code, out, err = call(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def plan_for_7b() -> PruningPlan:
    blocks = tuple(
        BlockPlan(
            part="language",
            index=layer,
            num_attention_heads=32,
            num_key_value_heads=32,
            intermediate_size=11008,
            kept_key_value_heads=tuple(range(16 + layer % 2)),
            kept_channels=tuple(range(0, 11008, 2)),
        )
        for layer in range(32)
    )
    return PruningPlan(
        family="llava",
        model="llava-7b",
        method="comp",
        rate=0.62,
        workload=Workload(image_tokens=576, text_tokens=60),
        macs_dense=4_400_000_000_000,
        macs=1_700_000_000_000,
        blocks=blocks,
        drops=(
            DropPlan(after_layer=8, vision_keep_ratio=0.5, text_keep_ratio=0.9),
            DropPlan(after_layer=16, vision_keep_ratio=0.25, text_keep_ratio=1.0),
        ),
    )


STAGES = [
    {
        "stage": number,
        "mode": mode,
        "macs": 10**9 - number * 10**8,
        "rate": number / 10,
        "metric": 0.9 - number / 50,
        "cost": 0.1,
        "costs": {
            "vision_tokens": 0.1,
            "language_parameters": 0.2 * number if number > 1 else None,
        },
        "explored": number == 2,
        "thresholds": {"vision": 0.1 * number, "text": 0.0},
    }
    for number, mode in enumerate(["vision_tokens", "language_parameters", "vision_tokens"], 1)
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "made"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"version": 1}))
    plan_for_7b().save(folder / "plan.json")
    (folder / "stages.jsonl").write_text("".join(json.dumps(line) + "\n" for line in STAGES))
    manifest = {
        "flavour": "onnxruntime",
        "precision": "float32",
        "model": "llava-7b",
        "verified": None,
        "files": [{"name": "decoder_model.onnx", "bytes": 12_345_678, "sha256": "ab" * 32}],
    }
    (folder / "onnx").mkdir()
    (folder / "onnx" / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_flops_of_the_published_figures(capsys: pytest.CaptureFixture[str]) -> None:
    command = ("flops", "--model", "llava-7b", "--image-tokens", 576, "--text-tokens", 0)
    dense = call_json(capsys, *command)
    assert dense["parts"]["language"]["macs"] == 3_817_152_184_320
    assert dense["macs"] == sum(part["macs"] for part in dense["parts"].values())
    assert dense["params"] == sum(part["params"] for part in dense["parts"].values())
    assert dense["vision_layers"] == {"run": 23, "total": 24}
    drops = ("--drop", "8:0.5", "--drop", "16:0.5", "--drop", "24:0.5")
    dropped = call_json(capsys, *command, *drops)
    assert dropped["parts"]["language"]["macs"] == 1_777_399_234_560
    assert dropped["dense"]["macs"] == dense["macs"]
    assert dropped["rate"] == pytest.approx(1 - dropped["macs"] / dense["macs"])


def test_flops_of_a_plan_take_its_model_and_workload(capsys, run: Path) -> None:
    for place in (run, run / "plan.json"):
        result = call_json(capsys, "flops", "--plan", place)
        assert result["model"] == "llava-7b"
        assert result["workload"] == {"image_tokens": 576, "text_tokens": 60}
        assert result["params"] < result["dense"]["params"]
        assert result["tokens_per_layer"][8] == 288 + 54
    code, out, _ = call(capsys, "flops", "--plan", run)
    assert code == 0
    assert "GMACs dense" in out


def test_flops_whole_tower(capsys: pytest.CaptureFixture[str]) -> None:
    run_only = call_json(capsys, "flops", "--model", "llava-7b")
    whole = call_json(capsys, "flops", "--model", "llava-7b", "--whole-tower")
    assert whole["parts"]["vision"]["macs"] / run_only["parts"]["vision"]["macs"] == pytest.approx(
        24 / 23, rel=1e-2
    )


@pytest.mark.parametrize("drop", ["8", "8:", "x:0.5", "8:0", "8:1.5", "0:0.5", "32:0.5", "8:nan"])
def test_flops_refuses_a_bad_drop(capsys: pytest.CaptureFixture[str], drop: str) -> None:
    code, out, err = call(capsys, "flops", "--model", "llava-7b", "--drop", drop)
    assert (code, out) == (1, "")
    assert err.startswith(f"Error: --drop {drop}: write LAYER:SHARE")
    assert err.count("\n") == 1


def test_flops_of_another_architecture_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "no model 'x'" in call(capsys, "flops", "--model", "x")[2]
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    code, _, err = call(capsys, "flops", "--model", tmp_path)
    assert code == 1
    assert "model_type is 'bert'" in err
    assert "no plan at" in call(capsys, "flops", "--plan", tmp_path / "none.json")[2]
    missing = "is no run: run.json is missing"
    assert missing in call(capsys, "flops", "--plan", tmp_path)[2]
    assert (
        "is not a plan: it has none of"
        in call(capsys, "flops", "--plan", tmp_path / "config.json")[2]
    )


def test_a_plan_of_another_family_is_named(capsys, run: Path) -> None:
    err = call(capsys, "flops", "--plan", run, "--model", "tiny-clip")[2]
    assert "that is a plan of a llava, and the model is a clip" in err


@pytest.mark.parametrize("flags", [(), ("--methods",)])
def test_models_cuts_no_name_off_at_80_columns(capsys, monkeypatch, flags) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = call(capsys, "models", *flags)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", out).splitlines()
    assert code == 0
    assert max(map(len, lines)) <= 80
    names = {word for line in lines for word in line.split()}
    models = [] if flags else [*EMBEDDED, "llava-7b", "llava-hf/llava-1.5-13b-hf"]
    assert {*models, *(method.name for method in METHODS)} <= names


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    result = call_json(capsys, "models")
    models = {model["name"]: model for model in result["models"]}
    assert list(models) == [*EMBEDDED, *ALIASES]
    params = [models[name]["params"] for name in ("llava-7b", "llava-13b")]
    assert params == [7_063_427_072, 13_351_494_656]
    assert models["tiny-llava"]["image_tokens"] == 144
    assert models["tiny-clip"]["image_tokens"] == 145
    assert (models["tiny-clip"]["family"], models["tiny-clip"]["task"]) == ("clip", "retrieval")
    code, out, _ = call(capsys, "models")
    assert code == 0
    for name in ("tiny-llava", "llava-hf/llava-1.5-7b-hf", "vision_tokens*", "comp"):
        assert name in out


def test_registry_agrees_with_the_adapters() -> None:
    from comp.families.blip import adapter as blip
    from comp.families.blip import tasks as blip_tasks
    from comp.families.clip import adapter as clip
    from comp.families.internvl import adapter as internvl
    from comp.families.llava import adapter as llava
    from comp.families.smolvlm import adapter as smolvlm

    adapters = {
        each.name: each
        for each in (
            llava.LlavaAdapter,
            smolvlm.SmolVLMAdapter,
            smolvlm.Idefics3Adapter,
            internvl.InternVLAdapter,
            clip.ClipAdapter,
            blip.BlipAdapter,
        )
    }
    for family in FAMILIES:
        adapter = adapters.pop(family.name)
        assert family.modes == tuple(mode.name for mode in adapter.modes)
        assert family.default_modes == adapter.default_modes
        assert all(family_of(kind) is family for kind in family.model_types)
    assert not adapters
    captions, other = blip_tasks.BlipCaptions, blip_tasks.BlipStatements
    for of in (captions, other):
        assert family_of("blip").defaults_of(of.architecture) == of.default_modes
    assert len(captions.default_modes) == 4
    assert family_of("blip-2") is None
    files = {path.stem for path in (Path(llava.__file__).parents[2] / "methods").glob("*.py")}
    names = {method.name.replace("-", "_") for method in METHODS}
    assert names == files - {"__init__"}


def test_every_method_lists_its_families_and_a_reason_for_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = {
        method["name"]: method for method in call_json(capsys, "models", "--methods")["methods"]
    }
    assert list(result) == [method.name for method in METHODS]
    families = {family.name for family in FAMILIES}
    for method in METHODS:
        assert set(method.families).isdisjoint(method.elsewhere)
        assert {*method.families, *method.elsewhere} == families
        assert result[method.name]["elsewhere"] == method.elsewhere
    code, out, _ = call(capsys, "models", "--methods")
    assert code == 0
    for words in ("wanda", "blip", "yes", *(m.name for m in METHODS)):
        assert words in out
    assert "Embedded" not in out
    assert "tiny-llava" not in out


def test_a_method_takes_the_modes_it_prunes() -> None:
    llava, wanda = family_of("llava"), method_called("wanda")
    assert llava is not None
    assert wanda.modes_among(llava.default_modes, llava) == ("language_parameters",)
    # The model refuses a name that no family has.
    assert wanda.modes_among(("vision_tokens", "heads"), llava) == ("heads",)
    with pytest.raises(
        CompExportError, match=r"wanda prunes parameters alone.*vision_tokens: name"
    ):
        wanda.modes_among(("vision_tokens",), llava)
    of_clip = replace(wanda, only=("clip",), elsewhere={"llava": "a made-up reason"})
    with pytest.raises(
        CompExportError, match=r"not for llava models: a made-up reason; choose .*comp"
    ):
        of_clip.modes_among(llava.modes, llava)


def test_inspect_a_run(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    code, out, err = call(capsys, "inspect", run)
    assert code == 0
    for words in ("llava-7b, comp, 62.0%", "language 31", "17 of 32", "5504 of 11008", "288 + 54"):
        assert words in out
    assert "11.774" in out  # MiB
    assert "not verified" in out
    for name in ("trajectory.png", "structure.png"):
        assert str(run / "reports" / name) in err
        with Image.open(run / "reports" / name) as image:
            assert min(image.size) > 400


def test_inspect_json(capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path) -> None:
    result = call_json(capsys, "inspect", run, "--out", tmp_path / "figures")
    assert result["plan"]["rate"] == 0.62
    assert result["plan"]["blocks"][1]["heads"] == 17
    assert result["artifacts"]["onnx"]["precision"] == "float32"
    assert [Path(path).exists() for path in result["figures"]] == [True, True]
    assert not (run / "reports").exists()
    assert call_json(capsys, "inspect", run, "--no-figures")["figures"] == []


def test_inspect_an_artifact(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    result = call_json(capsys, "inspect", run / "onnx")
    assert result["manifest"]["files"][0]["name"] == "decoder_model.onnx"
    code, out, _ = call(capsys, "inspect", run / "onnx")
    assert code == 0
    assert "11.8 MiB" in out
    assert "ab" * 32 not in out
    assert "ab" * 32 in call(capsys, "inspect", run / "onnx", "--hashes")[1]


def test_inspect_errors(capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path) -> None:
    assert "is no run: run.json is missing" in call(capsys, "inspect", tmp_path)[2]
    (run / "onnx" / "manifest.json").write_text("{")
    code, _, err = call(capsys, "inspect", run)
    assert code == 1
    assert "manifest.json" in err
    (run / "onnx" / "manifest.json").write_text("[]")
    assert "holds a list, not an object" in call(capsys, "inspect", run / "onnx")[2]


def test_inspect_defaults_to_the_latest_run(
    capsys: pytest.CaptureFixture[str], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run.parent / "latest").symlink_to("made")
    monkeypatch.chdir(run.parents[1])
    assert call_json(capsys, "inspect", "--no-figures")["run"] == str(run)


def test_figures_show_the_numbers_of_the_run() -> None:
    plan = plan_for_7b()
    left, metric, thresholds, costs = trajectory_figure(STAGES, plan).axes
    assert [bar.get_height() for bar in left.patches] == pytest.approx([90, 80, 70])
    assert left.lines[0].get_ydata()[0] == pytest.approx(100 * plan.macs / plan.macs_dense)
    assert [list(line.get_ydata()) for line in thresholds.lines] == [pytest.approx([0.1, 0.2, 0.3])]
    assert list(metric.lines[0].get_ydata()) == pytest.approx([88, 86, 84])
    assert [line.get_label() for line in costs.lines] == ["vision_tokens", "language_parameters"]
    none_raised = [stage | {"thresholds": {"vision": 0.0, "text": 0.0}} for stage in STAGES]
    assert len(trajectory_figure(none_raised, plan).axes) == 3
    heads, channels, tokens = structure_figure(plan).axes
    assert [bar.get_height() for bar in heads.patches[32:36]] == [16, 17, 16, 17]
    assert channels.patches[40].get_height() == 5504
    assert tokens.patches[8].get_height() == 288
    assert tokens_by_block(plan_for_7b())["language", 8] == (288, 54)


def test_damaged_stages_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "stages.jsonl"
    with pytest.raises(CompExportError, match="cannot read"):
        read_stages(path)
    path.write_text('{"stage": 1}\n{')
    with pytest.raises(CompExportError, match="is damaged"):
        read_stages(path)


def test_data_preview(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    result = call_json(
        capsys, "data", "preview", "--split", "train", "--start", 3, "--count", 4, "--out", out
    )
    assert [example["kind"] for example in result["examples"]] == [
        "count",
        "count_category",
        "relation",
        "extreme",
    ]
    with Image.open(out) as sheet:
        assert sheet.format == "PNG"
    assert call(capsys, "data", "preview", "--count", 1, "--out", out)[2].startswith("1 questions")


def test_data_preview_of_captions_and_statements(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "sheet.png"
    command = ("data", "preview", "--count", 4, "--out", out)
    captions = call_json(capsys, *command, "--task", "captions")["examples"]
    assert [set(shown) for shown in captions] == [{"kind", "caption"}] * 4
    with Image.open(out) as sheet:
        narrow = sheet.size
    statements = call_json(capsys, *command, "--task", "statements")["examples"]
    assert {shown["answer"] for shown in statements} <= {True, False}
    assert statements[0]["statement"].endswith(".")
    with Image.open(out) as sheet:
        assert sheet.height > narrow[1]  # three pairs a row, not six pictures


def test_data_preview_of_own_captions_and_statements(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    records = [
        {"filename": "a.png", "split": split, "sentences": [{"raw": f"for {split}"}]}
        for split in ("train", "val")
    ]
    captions, pairs = tmp_path / "dataset.json", tmp_path / "pairs.jsonl"
    captions.write_text(json.dumps({"images": records}))
    pairs.write_text(
        json.dumps({"images": ["a.png", "a.png"], "statement": "alike", "label": True})
    )
    command = ("data", "preview", "--out", tmp_path / "sheet.png", "--data")
    shown = call_json(capsys, *command, captions, "--task", "captions", "--split", "validation")
    assert shown["examples"] == [{"kind": "caption", "caption": "for val"}]
    shown = call_json(capsys, *command, pairs, "--task", "statements")
    assert shown["examples"] == [{"kind": "statement", "statement": "alike", "answer": True}]
    assert (
        "pairs.jsonl holds statements: give --task statements" in call(capsys, *command, pairs)[2]
    )
    lines = tmp_path / "lines.jsonl"
    lines.write_text(json.dumps({"image": "a.png", "caption": "black"}))
    assert "lines.jsonl holds captions: give --task captions" in call(capsys, *command, lines)[2]


def test_data_preview_of_own_data(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    own = tmp_path / "d.jsonl"
    own.write_text(json.dumps({"image": "a.png", "question": "what?", "answer": "black"}))
    out = tmp_path / "sheet.png"
    command = ("data", "preview", "--data", own, "--out", out)
    assert len(call_json(capsys, *command)["examples"]) == 1
    assert "holds 1 questions" in call(capsys, *command, "--start", 1)[2]
    assert "no image folder" in call(capsys, *command, "--images", tmp_path / "none")[2]
