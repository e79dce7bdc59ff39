"""MADTP: the dictionary is trained, saved and cut; the requested rate; refusals."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from comp.adapter import Forwarding
from comp.errors import CompExportError
from comp.families.loading import load_adapter
from comp.masks import Masks
from comp.methods import madtp
from comp.tokens.dictionary import TokenDictionary, attach_dictionary, dictionary_of
from comp.tokens.drop_rules import rules_from_plan
from tests.comp.jobs import small_job
from tests.comp.merging import ways_of
from tests.comp.small_blip import examples_of, random_blip, random_plan

TOKENS = ("vision_tokens", "language_tokens")


def test_responses_are_cosines():
    """Towers of one width need no projection; the wider one's tokens are projected."""
    torch.manual_seed(0)
    dictionary = TokenDictionary(6, 4, size=3)
    states = torch.randn(2, 5, 6)
    result = dictionary.responses("vision", states, torch.ones(2, 5))
    wide = states @ dictionary.projections["vision"].weight.T
    for entry in range(3):
        cosine = F.cosine_similarity(wide, dictionary.entries[entry], dim=-1)
        torch.testing.assert_close(result[..., entry], cosine)
    assert list(dictionary.projections) == ["vision"]
    assert not TokenDictionary(4, 4).projections
    assert TokenDictionary(4, 8).entries.shape == (100, 4)


def test_the_alignment_loss_by_hand():
    """Two pairs, two entries: images respond to one each, texts to the same, or to the other."""
    dictionary = TokenDictionary(2, 2, size=2)
    with torch.no_grad():
        dictionary.entries.copy_(torch.eye(2))
    images, alive = torch.eye(2)[:, None], torch.ones(2, 1)

    def loss(texts):
        with dictionary.recording():
            dictionary.responses("vision", images, alive)
            dictionary.responses("language", texts, alive)
            return dictionary.alignment_loss()

    # Responses (1, 0) and (0, 1), their means taken off and at length 1: products are 1 and −1.
    apart = torch.tensor(2 / 0.07)
    torch.testing.assert_close(loss(images), torch.log1p((-apart).exp()))
    torch.testing.assert_close(loss(images.flip(0)), apart + torch.log1p((-apart).exp()))


def test_responses_of_absent_tokens_are_not_recorded():
    dictionary = TokenDictionary(2, 2, size=2)
    with torch.no_grad():
        dictionary.entries.copy_(torch.eye(2))
    states = torch.tensor([[[1.0, 0], [0, 1]]])
    with dictionary.recording():
        dictionary.responses("vision", states, torch.tensor([[1.0, 0.0]]))
        assert dictionary._recorded is not None
        assert dictionary._recorded[0][1].tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("family", ["clip", "blip"])
def test_a_run_meets_the_rate(family, tmp_path):
    job = small_job(family, tmp_path / "state", 0.4, modes=TOKENS, stages=2, steps_per_stage=1)
    outcome = madtp.prune(job)
    plan = outcome.plan
    assert plan.rate == pytest.approx(0.4, abs=0.005)
    assert {(drop.ranking, drop.merge) for drop in plan.drops} == {("aligned", "one")}
    assert outcome.steps == 2
    lines = [
        json.loads(each) for each in (tmp_path / "state/stages.jsonl").read_text().splitlines()
    ]
    assert [line["stage"] for line in lines] == [1, 2]
    assert 0 < lines[0]["rate"] < lines[1]["rate"] == plan.rate
    learned = dictionary_of(job.adapter.model)
    torch.manual_seed(job.options.seed)
    first = small_job(family, tmp_path / "other", 0.4, modes=TOKENS, stages=2, steps_per_stage=1)
    torch.manual_seed(job.options.seed)
    attach_dictionary(first.adapter.model, plan.drops)
    begun = dictionary_of(first.adapter.model)
    assert not torch.equal(learned.entries, begun.entries)
    torch.testing.assert_close(learned.entries, begun.entries, atol=0.05, rtol=0)
    job.adapter.cut(plan).save(tmp_path / "slim")
    loaded = load_adapter(tmp_path / "slim")
    assert torch.equal(dictionary_of(loaded.model).entries, learned.entries)
    forwarding = Forwarding(rules=rules_from_plan(plan.drops))
    with torch.no_grad():
        one, two = (
            each.score(job.data.validation[0], forwarding).loss for each in (job.adapter, loaded)
        )
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)
    again = madtp.prune(replace(first, folder=job.folder))
    assert again == outcome
    assert torch.equal(dictionary_of(first.adapter.model).entries, learned.entries)


@torch.no_grad()
def test_masked_equals_slim():
    adapter = random_blip("statement")
    plan = ways_of(random_plan(adapter, seed=2, seen=0.6, read=0.6), "aligned", "one")
    batch, rules = adapter.collate(examples_of("statement", 4)), rules_from_plan(plan.drops)
    with pytest.raises(CompExportError, match="by a dictionary, and the model has none"):
        adapter.score(batch, Forwarding(rules=rules))
    attach_dictionary(adapter.model, plan.drops)
    masked = adapter.score(batch, Forwarding(Masks.from_plan(plan.blocks), rules))
    slim = adapter.cut(plan).score(batch, Forwarding(rules=rules))
    torch.testing.assert_close(masked.loss, slim.loss, atol=1e-4, rtol=1e-4)
    assert masked.shares == slim.shares


def test_unsupported_options_are_refused(tmp_path):
    with pytest.raises(CompExportError, match="name vision_tokens and language_tokens"):
        madtp.prune(small_job("clip", tmp_path / "one", 0.4, modes=TOKENS[:1]))
    with pytest.raises(CompExportError, match="no steps to train it"):
        madtp.prune(small_job("clip", tmp_path / "two", 0.4, modes=TOKENS, steps_per_stage=0))
    with pytest.raises(CompExportError, match=r"rate 0\.99 is beyond .* at most 0\.\d\d"):
        madtp.prune(small_job("clip", tmp_path / "three", 0.99, modes=TOKENS))
