"""``comp.prune``: the plan of the command, callbacks, data from Python, and clear refusals."""

import pytest
from click.testing import CliRunner

import comp
from comp.cli import cli
from comp.data.emoji_scenes.captions import CaptionExamples
from comp.plan import PruningPlan
from comp.registry.importances import IMPORTANCES
from comp.registry.methods import METHODS
from tests.comp.small import questions
from tests.comp.small_clip import random_clip, random_plan

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


@pytest.mark.parametrize(
    "data", [iter([]), {0: "a"}, {1, 2}, b"text", 5], ids=lambda each: type(each).__name__
)
def test_data_that_is_no_sequence_is_refused_before_anything_is_loaded(tmp_path, data):
    with pytest.raises(comp.CompExportError, match=r"data is a \w+: give a file, or a sequence of"):
        comp.prune("tiny-clip", 0.3, data=data, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_later_example_that_is_none_is_named(dense, tmp_path):
    captions = CaptionExamples("train", 48)
    examples = [captions[index] for index in range(48)]
    examples[21] = "text"
    with pytest.raises(comp.CompExportError, match=r"example 21 is a str: give a comp\.Example"):
        comp.prune(dense, 0.3, data=examples, out=tmp_path / "run", device="cpu", **QUICK)


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
    monkeypatch.setitem(IMPORTANCES, "list", lambda layer: layer.norm.tolist())
    for name in ("mean", "nan", "list"):
        with pytest.raises(comp.CompExportError, match=r"return \d+ finite numbers, one a channel"):
            comp.prune(dense, 0.3, importance=name, out=tmp_path / name, device="cpu", **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stage": 3}, "unknown option 'stage': did you mean 'stages'"),
        (
            {"importance": "nothing"},
            "--importance 'nothing' is unknown: choose from cim, magnitude",
        ),
        ({"importance": "magnitude", "method": "wanda"}, "which has a formula of its own"),
        ({"importance": "magnitude", "faithful": True}, "not of the paper's recipe"),
        ({"method": "nothing"}, "--method 'nothing' is unknown: choose from comp"),
        ({"force": True, "resume": True}, "give one of them"),
        ({"images": "pictures"}, "--images pictures without --data: name the file"),
        ({"follow_links": True}, "--follow-links without --data: name the file"),
        ({"seed": -1}, "option 'seed' is -1: input should be greater than or equal to 0"),
        ({"seed": 2**70}, "option 'seed' is 1180591620717411303424: input should be less"),
        ({"device": "gpu"}, "device is 'gpu': choose from auto, cpu, cuda"),
        ({"model": None}, "model is a NoneType: give the name of an embedded model"),
        ({"callbacks": comp.Callback()}, "callbacks is a Callback: give a list of comp.Callback"),
        (
            {"callbacks": [print]},
            "callbacks has <built-in function print>: give objects of a class",
        ),
        ({"callbacks": [comp.Callback]}, "callbacks has the class Callback: give objects"),
    ],
)
def test_wrong_options_are_refused_by_name(dense, tmp_path, arguments, message):
    with pytest.raises(comp.CompExportError, match=message):
        comp.prune(**{"model": dense, "rate": 0.3, "out": tmp_path / "run"} | arguments)
    assert not (tmp_path / "run").exists()


def test_paths_are_text_or_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(comp.CompExportError, match="out is 5: give a path"):
        comp.prune(out=5)
    for run in ("nothing", tmp_path / "nothing"):
        with pytest.raises(comp.CompExportError, match=r"no run at .*nothing"):
            comp.open_run(run)
    with pytest.raises(comp.CompExportError, match="run is 5: give a path"):
        comp.open_run(5)


def test_modes_may_be_a_list():
    assert comp.PruneOptions.of(rate=0.3, modes=["vp", "lp"]).modes == "vp,lp"


@pytest.fixture
def plan_of_method():
    """Register a method that returns what is given, after the options were imported."""
    before = list(METHODS)

    def register(returned):
        comp.register_method("given", prunes=["parameters"], description="Returns what is given")(
            lambda job: returned
        )

    yield register
    METHODS[:] = before


def test_what_a_method_returns_must_fit(dense, tmp_path, plan_of_method):
    def refused(returned, message):
        METHODS[:] = [method for method in METHODS if method.name != "given"]
        plan_of_method(returned)
        with pytest.raises(comp.CompExportError, match=message):
            comp.prune(
                dense,
                0.3,
                method="given",
                out=tmp_path / "run",
                device="cpu",
                **QUICK,
                modes="vp,lp",
            )
        assert not (tmp_path / "run").exists()

    refused(None, "method given returned a NoneType: return a comp.Outcome")
    good = random_plan()
    macs = {"macs_dense": 1000, "macs": 900, "rate": 0.1}
    wrong_rate = PruningPlan.model_validate(good.model_dump() | macs)
    refused(
        comp.Outcome(wrong_rate, 1.0, 1.0, 0),
        "returned a plan at rate 0.100 for a requested 0.3: meet it within 0.02",
    )
    part = PruningPlan.model_validate(
        good.model_dump() | {"blocks": good.model_dump()["blocks"][:2], "drops": ()}
    )
    refused(comp.Outcome(part, 1.0, 1.0, 0), "returned a plan of another model, tiny")


def test_a_name_is_registered_once():
    with pytest.raises(comp.CompExportError, match="the method 'wanda' is registered already"):
        comp.register_method("wanda", prunes=["parameters"], description="Another")
    with pytest.raises(comp.CompExportError, match="the importance 'cim' is registered already"):
        comp.register_importance("cim")
    assert sum(method.name == "wanda" for method in METHODS) == 1
