"""``comp.prune``: the plan of the command, callbacks, data from Python, and clear refusals."""

import pytest
from click.testing import CliRunner

import comp
from comp.cli import cli
from comp.data.emoji_scenes.captions import CaptionExamples
from comp.registry.importances import IMPORTANCES
from comp.registry.methods import METHODS
from tests.comp.small import questions
from tests.comp.small_clip import random_clip

QUICK = {
    "stages": 2,
    "steps_per_stage": 1,
    "recover_steps": 2,
    "batch_size": 4,
    "calibration": 4,
    "validation": 4,
    "dtype": "float32",
    "distill": "none",
    "race": 0,
}


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "dense"
    random_clip().save(path)
    return path


def test_the_plan_and_the_weights_are_those_of_the_command(dense, tmp_path):
    options = {**QUICK, "modes": "vp,lp", "seed": 3, "train_stages": True}
    run = comp.prune(dense, 0.3, out=tmp_path / "python", device="cpu", **options)
    words = [
        word
        for name, value in options.items()
        for word in (
            [f"--{name.replace('_', '-')}"]
            if value is True
            else [f"--{name.replace('_', '-')}", str(value)]
        )
    ]
    words += ["--device", "cpu", "--out", str(tmp_path / "command")]
    CliRunner().invoke(
        cli, ["prune", "--model", str(dense), "--rate", "0.3", *words], catch_exceptions=False
    )
    command = comp.open_run(tmp_path / "command")
    assert run.load_plan() == command.load_plan()
    weights = "model.safetensors"
    assert (run.checkpoint / weights).read_bytes() == (command.checkpoint / weights).read_bytes()
    assert run.read_record()["options"] == command.read_record()["options"]


class Recorder(comp.Callback):
    def __init__(self, stop_after=None):
        self.stages, self.tasks, self.stop_after = [], set(), stop_after

    def on_stage(self, stage):
        self.stages.append(stage["stage"])
        if len(self.stages) == self.stop_after:
            raise InterruptedError("enough")

    def on_progress(self, task, done, total):
        assert 0 <= done <= total
        self.tasks.add(task)


def test_a_callback_sees_stages_and_may_stop_a_run_that_then_continues(dense, tmp_path):
    whole, first, second = Recorder(), Recorder(stop_after=1), Recorder()
    arguments = {"rate": 0.3, "device": "cpu", **QUICK}
    expected = comp.prune(dense, out=tmp_path / "whole", callbacks=[whole], **arguments)
    with pytest.raises(InterruptedError):
        comp.prune(dense, out=tmp_path / "run", callbacks=[first], **arguments)
    with pytest.raises(comp.CompExportError, match="continue it with --resume"):
        comp.prune(dense, out=tmp_path / "run", **arguments)
    run = comp.prune(dense, out=tmp_path / "run", resume=True, callbacks=[second], **arguments)
    assert run.load_plan() == expected.load_plan()
    assert whole.stages == first.stages + second.stages
    assert {"pruning", "recovering"} <= whole.tasks


def test_data_is_any_sequence_of_examples_of_the_task(dense, tmp_path):
    captions = CaptionExamples("train", 48)
    run = comp.prune(dense, 0.3, data=captions, out=tmp_path / "own", device="cpu", **QUICK)
    assert run.read_record()["request"]["data"] == "48 examples"
    with pytest.raises(comp.CompExportError, match="8 examples are too few"):
        comp.prune(dense, 0.3, data=questions(8), out=tmp_path / "few", device="cpu", **QUICK)
    for wrong, why in (([], "there is none"), (["text"] * 50, "the first is a str")):
        with pytest.raises(
            comp.CompExportError, match=f"needs examples of comp.Example, and {why}"
        ):
            comp.prune(dense, 0.3, data=wrong, out=tmp_path / "wrong", device="cpu", **QUICK)
    with pytest.raises(comp.CompExportError, match="are for data in a file"):
        comp.prune(dense, 0.3, data=captions, images=tmp_path, out=tmp_path / "wrong")


def test_a_formula_decides_what_stays(dense, tmp_path):
    options = {**QUICK, "modes": "vp,lp", "recover": "none", "recover_steps": 0}
    plans = {
        name: comp.prune(
            dense, 0.3, importance=name, out=tmp_path / name, device="cpu", **options
        ).load_plan()
        for name in ("cim", "magnitude", "activation")
    }
    assert len({str(plan.blocks) for plan in plans.values()}) == 3


def test_a_formula_that_returns_nonsense_is_refused(dense, tmp_path, monkeypatch):
    monkeypatch.setitem(IMPORTANCES, "mean", lambda layer: layer.norm.mean())
    monkeypatch.setitem(IMPORTANCES, "nan", lambda layer: layer.norm * float("nan"))
    options = {**QUICK, "modes": "vp,lp", "recover": "none"}
    for name in ("mean", "nan"):
        with pytest.raises(comp.CompExportError, match=r"return \d+ finite numbers, one a channel"):
            comp.prune(dense, 0.3, importance=name, out=tmp_path / name, device="cpu", **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stage": 3}, "unknown option 'stage': did you mean 'stages'"),
        ({"importance": "nothing"}, "--importance nothing: choose from cim, magnitude, activation"),
        ({"importance": "magnitude", "method": "wanda"}, "which has a formula of its own"),
        ({"importance": "magnitude", "faithful": True}, "not of the paper's recipe"),
        ({"method": "nothing"}, "--method nothing: choose from comp"),
        ({"force": True, "resume": True}, "give one of them"),
    ],
)
def test_wrong_options_are_refused_by_name(dense, tmp_path, arguments, message):
    with pytest.raises(comp.CompExportError, match=message):
        comp.prune(dense, 0.3, out=tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_a_name_is_registered_once():
    with pytest.raises(comp.CompExportError, match="the method 'wanda' is registered already"):
        comp.register_method("wanda", prunes=["parameters"], description="Another")
    with pytest.raises(comp.CompExportError, match="the importance 'cim' is registered already"):
        comp.register_importance("cim")
    assert sum(method.name == "wanda" for method in METHODS) == 1
