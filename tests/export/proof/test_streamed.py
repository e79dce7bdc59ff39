"""``verify`` of models that stay in their files equals that of the same models in memory."""

import json

import pytest
import torch
from click.testing import CliRunner

from comp.checkpoints import model_size
from comp.cli import cli
from comp.families import streamed
from comp.families.loading import load_adapter
from comp.masks import Masks
from comp.plan import PruningPlan
from export.proof.integer_weights import replaced_weights
from tests.export.tiny import make_plan, save_checkpoint, tiny_config, tiny_model

QUESTIONS = 4
UNANSWERED = ("--answer-seconds", "0")  # by transformers: the first links are tested elsewhere


def called(*words):
    result = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    return result.exit_code, result.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a model cut by a plan, weights unchanged, with artifacts of fp32 and of 8 and 4 bits."""
    home = tmp_path_factory.mktemp("runs")
    model = tiny_model(tiny_config(kv_heads=2), seed=9)  # few of its answers are ties
    dense = save_checkpoint(model, home / "dense")
    plan: PruningPlan = make_plan(model.config, vision=True, seed=7, model=str(dense))
    plan.save(home / "plan.json")
    run = home / "run"
    assert called("cut", "--model", dense, "--plan", home / "plan.json", "--out", run)[0] == 0
    integers = ("--flavour", "standard", "--precision")  # OpenVINO multiplies them on every CPU
    for more in ((), (*integers, "int8"), (*integers, "int4", "--no-dense")):
        assert called("onnx", run, "--no-check", *more, "--json")[0] == 0
    return run


def verified(run):
    status, text = called("verify", run, "--questions", QUESTIONS, *UNANSWERED, "--json")
    return status, json.loads(text)


def test_a_streamed_model_has_the_same_verification(run, monkeypatch):
    in_memory = verified(run)
    monkeypatch.setattr(model_size, "STREAMED", 1000)
    loaded = []
    real = streamed.stream_decoder
    monkeypatch.setattr(
        streamed,
        "stream_decoder",
        lambda *given: (loaded.append(given[2].name), real(*given)),
    )
    in_files = verified(run)
    assert loaded == ["dense", "checkpoint"]
    assert in_memory[0] == in_files[0] == 0
    ours, theirs = (report["links"] for _, report in (in_files, in_memory))
    assert [link["name"] for link in ours] == [link["name"] for link in theirs]
    assert any("slim int4 torch" in link["name"] for link in ours)
    for one, other in zip(ours, theirs, strict=True):
        assert one["answers"] == other["answers"]
        assert one["kept"] == other["kept"]
        assert one["max_logit_difference"] == pytest.approx(other["max_logit_difference"], abs=1e-5)


def test_wrong_weights_fail_verification(run, monkeypatch):
    """This shows that the test above really reads the files."""
    monkeypatch.setattr(model_size, "STREAMED", 1000)
    real = streamed.StoredMatrix.read

    def damaged(self):
        actual = real(self)
        slim = "checkpoint" in str(self.file) and "layers.1.mlp.down_proj" in self.name
        return actual.flip(1) if slim else actual

    monkeypatch.setattr(streamed.StoredMatrix, "read", damaged)
    status, report = verified(run)
    assert status != 0
    assert not report["ok"]


def test_replaced_weights_of_a_streamed_model_are_restored(run):
    adapter = load_adapter(run / "checkpoint", streamed=True)
    name, layer = next(iter(streamed.streamed_layers(adapter.model).items()))
    before = layer.weight
    ones = torch.ones(layer.stored.size)
    with replaced_weights(adapter.model, {f"{name}.weight": ones.numpy()}):
        assert torch.equal(layer.weight, ones)
    assert torch.equal(layer.weight, before)
    wrong = {f"{name}.weight": ones[:1].numpy()}
    with replaced_weights(adapter.model, wrong), pytest.raises(ValueError, match="of shape"):
        layer(torch.ones(1, layer.in_features))
    assert torch.equal(layer.weight, before)


def test_masks_silence_the_extra_units_of_a_streamed_dense_model(run):
    """Masks of ones on the filled model give other logits than its plan's masks."""
    from comp.adapter import Forwarding
    from comp.checkpoints.slices import cut_of
    from export.proof.masked_torch import fill_kept, masks_of

    plan = PruningPlan.load(run / "plan.json")
    dense = load_adapter(run.parent / "dense", streamed=True)
    slim = load_adapter(run / "checkpoint", streamed=True)
    shape = dense.shape
    head_dim = {"language": shape.text.head_dim, "vision": shape.vision.head_dim}
    fill_kept(dense, slim, lambda name: cut_of(name, plan, head_dim))
    from tests.comp.small import questions

    batch = dense.collate(questions(2))
    with torch.no_grad():
        whole = dense.score(batch, Forwarding(Masks.ones(dense.blocks))).loss
        masked = dense.score(batch, Forwarding(masks_of(dense, plan))).loss
        cut = slim.score(batch, Forwarding()).loss
    assert masked.item() == pytest.approx(cut.item(), abs=1e-4)
    assert abs(whole.item() - cut.item()) > 1e-3
