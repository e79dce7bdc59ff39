"""Every ranking of tokens, from brute force to all variants that a run is exported to."""

import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from comp.plan import PruningPlan
from comp.runs import RUN_VERSION
from export.artifact.load import load_artifact
from export.weights.slim import write_slim_checkpoint
from serve.commands.onnx import command as onnx_command
from serve.commands.verify import command as verify_command
from tests.export.proof.test_llava_onnx import BOUND, FLAVOURS, runner
from tests.export.reference import MaskedReference
from tests.export.tiny import make_plan, prompt

RANKINGS = ("mean_head", "next_layer", "diversity")
QUESTIONS = 4


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("ranking", RANKINGS)
def test_graphs_equal_brute_force(ranking, flavour, gqa, tmp_path):
    model, checkpoint = gqa
    plan = make_plan(model.config, ((1, 0.7, 0.8), (3, 0.4, 0.5)), seed=3, ranking=ranking)
    actual = runner(tmp_path / "onnx", checkpoint, flavour, plan=plan)
    for texts, images, batch in ((5, 1, 1), (13, 2, 3), (1, 1, 2), (4, 0, 1)):
        pixels, ids = prompt(texts, images, seed=texts, batch=batch)
        logits, kept, state = actual.prefill(pixels, ids)
        rows, expected = [MaskedReference(model, plan) for _ in range(batch)], []
        for row, one in enumerate(rows):
            mine = torch.tensor(pixels[row * images : (row + 1) * images]) if images else None
            row_logits, row_kept = one.prefill(mine, torch.tensor(ids[row : row + 1]))
            assert [place[row].tolist() for place in kept] == row_kept
            expected.append(row_logits.numpy())
        assert np.abs(logits - np.stack(expected)).max() <= BOUND
        for _ in range(2):  # a decode step never drops
            token = np.stack(expected).argmax(-1)
            logits, state = actual.step(token, state)
            expected = [one.step(int(t)).numpy() for one, t in zip(rows, token, strict=True)]
            assert np.abs(logits - np.stack(expected)).max() <= BOUND


def test_rankings_differ(gqa, tmp_path):
    """Otherwise the tests above could not tell one ranking from another."""
    model, _ = gqa
    pixels, ids = prompt(13, 2, seed=13)
    kept = {}
    for ranking in ("received", *RANKINGS):
        plan = make_plan(model.config, ((2, 0.4, 0.5),), seed=3, ranking=ranking)
        _, actual = MaskedReference(model, plan).prefill(torch.tensor(pixels), torch.tensor(ids))
        kept[ranking] = tuple(actual[0])
    assert len(set(kept.values())) == 4


@pytest.fixture
def run_of(gqa, tmp_path):
    model, checkpoint = gqa

    def make(ranking):
        drops = ((1, 0.7, 0.8), (3, 0.4, 1.0))
        plan: PruningPlan = make_plan(
            model.config, drops, vision=True, seed=7, model=str(checkpoint), ranking=ranking
        )
        run = tmp_path / "tiny-0.5"
        run.mkdir()
        plan.save(run / "plan.json")
        write_slim_checkpoint(checkpoint, plan, run / "checkpoint")
        record = {"version": RUN_VERSION, "model": str(checkpoint), "model_path": str(checkpoint)}
        (run / "run.json").write_text(json.dumps(record))
        return run

    return make


@pytest.mark.parametrize("ranking", RANKINGS)
def test_every_variant_of_a_run_is_verified(ranking, run_of):
    run = run_of(ranking)
    assert {d.ranking for d in PruningPlan.load(run / "plan.json").drops} == {ranking}
    for words in (("--no-dense",), ("--no-dense", "--flavour", "standard")):
        result = CliRunner().invoke(
            onnx_command, [str(run), "--no-check", *words], catch_exceptions=False
        )
        assert result.exit_code == 0
    words = [str(run), "--questions", str(QUESTIONS), "--max-new-tokens", "4", "--json"]
    result = CliRunner().invoke(verify_command, words, catch_exceptions=False)
    report = json.loads(result.stdout)
    assert report["ok"]
    assert [link["name"] for link in report["links"]] == [
        "masked torch = slim torch",
        "slim torch = ONNX Runtime (onnx)",
        "slim torch = ONNX Runtime (onnx-standard)",
        "slim torch = ONNX Runtime, caches in place (onnx-standard)",
        "slim torch = OpenVINO (onnx-standard)",
    ]
    for link in report["links"]:
        assert [place["identical"] for place in link["kept"]] == [QUESTIONS, QUESTIONS]
    manifest = load_artifact(run / "onnx").manifest
    assert [drop.ranking for drop in manifest.decoder.drops] == [ranking, ranking]
    shutil.rmtree(run)
