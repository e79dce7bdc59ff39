"""`comp-export prune --faithful` is the paper's recipe for any defaults."""

from dataclasses import replace

import pytest
from click.testing import CliRunner

from comp.cli import cli
from comp.commands import prune as prune_module
from comp.errors import CompExportError
from comp.pipeline import prune as pipeline
from comp.pipeline.options import PruneOptions, recipe
from comp.search.strategy import StrategyOptions


class Captured(Exception):
    """Raised with the request of a command, instead of running it."""


@pytest.fixture(autouse=True)
def no_run(monkeypatch):
    def capture(request, *_, **__):
        raise Captured(request)

    monkeypatch.setattr(pipeline, "run_pruning", capture)


def request_of(checkpoint, out, *more):
    words = ["prune", "--model", str(checkpoint), "--rate", "0.5", "--out", str(out), *more]
    with pytest.raises(Captured) as caught:
        CliRunner().invoke(cli, words, catch_exceptions=False)
    return caught.value.args[0]


def test_the_recipe_equals_the_defaults_except_for_our_additions(checkpoint, tmp_path):
    plain = request_of(checkpoint, tmp_path / "run")
    faithful = request_of(checkpoint, tmp_path / "run", "--faithful")
    assert (plain.faithful, faithful.faithful) == (False, True)
    assert (plain.search.reconstruct, faithful.search.reconstruct) == (True, False)
    strategy = replace(plain.search.strategy, cost_metric="accuracy")
    ours = {"reconstruct": False, "train_stages": True, "strategy": strategy}
    assert replace(plain.search, **ours) == faithful.search
    assert (plain.search.comp_steps, faithful.search.comp_steps) == (0, 96)
    assert replace(plain.sizes, cost=None) == faithful.sizes
    assert (plain.search.strategy.cost_metric, plain.sizes.cost) == ("loss", 64)
    assert (plain.distill.what, faithful.distill.what) == ("both", "none")
    assert faithful.search.strategy == StrategyOptions(0.2, 5.0, 0.4, 5, True, "accuracy")


class OtherDefaults(PruneOptions):
    distill: str | None = "logits"
    history: float = 0.1
    exploration: float = 0.5
    no_cit: bool = True


def test_the_recipe_does_not_depend_on_the_defaults(checkpoint, tmp_path, monkeypatch):
    before = request_of(checkpoint, tmp_path / "run", "--faithful")
    monkeypatch.setattr(prune_module, "PruneOptions", OtherDefaults)
    changed = request_of(checkpoint, tmp_path / "run")
    assert changed.distill.what == "logits"
    assert changed.search.strategy.history == 0.1
    assert changed.search.importance.cit is False
    assert request_of(checkpoint, tmp_path / "run", "--faithful") == before


@pytest.mark.parametrize(
    "option",
    [
        ("--distill", "logits"),
        ("--cost", "latency"),
        ("--cost-metric", "loss"),
        ("--cost-examples", "8"),
        ("--exploration", "0.1"),
        ("--no-cip",),
    ],
)
def test_options_that_leave_the_recipe_are_refused(checkpoint, tmp_path, option):
    words = ["prune", "--model", str(checkpoint), "--rate", "0.5", "--out", str(tmp_path / "run")]
    with pytest.raises(CompExportError, match=f"^{' '.join(option)} is not of the paper's recipe"):
        CliRunner().invoke(cli, [*words, *option, "--faithful"], catch_exceptions=False)
    request_of(
        checkpoint, tmp_path / "run", "--faithful", "--stages", "3", "--lr", "1e-3", "--modes", "vt"
    )


def test_the_recipe_is_the_paper_and_leaves_modes_data_steps_and_rate_to_the_user():
    assert recipe() == {
        "method": "comp",
        "distill": "none",
        "cost": "flops",
        "cost_metric": "accuracy",
        "cost_examples": None,
        "race": 0,
        "exploration": 0.2,
        "temperature": 5.0,
        "history": 0.4,
        "no_reconstruction": True,
        "train_stages": True,
        "importance": "cim",
        "no_cip": False,
        "no_cit": False,
        "no_cas": False,
        "no_exploration": False,
        "no_history": False,
        "undo": False,
    }
    options = PruneOptions.of(rate=0.5, faithful=True)
    assert {name: getattr(options, name) for name in recipe()} == recipe()
