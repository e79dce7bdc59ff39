"""CrossGET: matching by hand and as a loop, attention by size, the same number dropped everywhere."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cosine_similarity

from comp.adapter import Forwarding
from comp.checkpoints.encoder_shape import packaged_shape
from comp.errors import CompExportError
from comp.families.clip.forward import ClipBlock
from comp.families.encoder.forward import EncoderOptions, run_encoder, start_tokens
from comp.flops.token_drops import dropped_macs
from comp.importance.encoder_rankings import AttentionRecord, importance_of, matched
from comp.methods import crossget
from comp.methods.common.encoder_tokens import TokenProblem
from comp.plan import PruningPlan, Workload, keep_count
from comp.tokens.drop_rules import RatioRule, rules_from_plan
from comp.tokens.state import VISION
from tests.comp.jobs import small_job
from tests.comp.merging import macs_of_a_way, ways_of
from tests.comp.small_blip import random_blip
from tests.comp.small_blip import random_plan as blip_plan
from tests.comp.small_clip import random_clip
from tests.comp.tokens.test_merging import looked_at, state_of

TOKENS = ("vision_tokens", "language_tokens")


def test_matching_by_hand():
    """[CLS] asks for the right; 1 and 2 are each other's nearest, 3 is apart, 4 between."""
    keys = [[1.0, 0], [1, 0], [2, 0], [0, 1], [1, 1]]
    looked = looked_at(keys, [[0.2] * 5])
    # Largest cosines 1, 1, 0.707, 0.707: in the order 1 2 3 4. To those behind: 1, 0.707, 0.707, none.
    half = 0.5**0.5
    wanted = [(1 - 1 + 2) / 6, (1 - half + 2) / 6, (0 - half + 2) / 6, (half + 3 + 2) / 6]
    torch.testing.assert_close(matched(looked), torch.tensor([[0.0, *wanted]]))
    assert torch.equal(importance_of("matched", looked, calibrated=True), matched(looked))


def loop(keys, query, alive, stays):
    """One row, written out; ``keys [N, d]``."""
    present_tokens = [i for i, present in enumerate(alive) if present and i != stays]
    alike = {
        (i, j): float(cosine_similarity(keys[i], keys[j], dim=0))
        for i in present_tokens
        for j in present_tokens
        if i != j
    }
    best = {
        i: max((alike[i, j] for j in present_tokens if j != i), default=-3.0)
        for i in present_tokens
    }
    order = sorted(present_tokens, key=lambda i: (-round(best[i], 5), i))
    result = [0.0] * len(keys)
    for rank, i in enumerate(order):
        nearest = max((alike[i, j] for j in order[rank + 1 :]), default=-3.0)
        result[i] = (float(cosine_similarity(keys[i], query, dim=0)) - nearest + 2) / 6
    return result


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(0, 10_000), st.booleans())
def test_matching_equals_the_loop(count, seed, last):
    """Two rows, the second padded; two heads, the third masked."""
    generator = torch.Generator().manual_seed(seed)
    key, query = (torch.randn(2, 3, count, 4, generator=generator) for _ in range(2))
    alive = torch.ones(2, count)
    padding = int(torch.randint(0, count, (1,), generator=generator))
    alive[1, count - padding :] = 0
    stays = alive.sum(1).long() - 1 if last else torch.zeros(2, dtype=torch.long)
    entering = state_of(torch.zeros(2, count, 1), alive, stays)
    empty = torch.zeros(2, 3, count, count)
    mask = torch.tensor([1.0, 1.0, 0.0])
    looked = AttentionRecord(empty, key, torch.zeros(2, count, 3, 4), mask, entering, query)
    result = matched(looked)
    for row in range(2):
        flat = key[row, :2].transpose(0, 1).flatten(1)
        guide = query[row, :2, int(stays[row])].flatten()
        wanted = loop(flat, guide, alive[row].tolist(), int(stays[row]))
        torch.testing.assert_close(result[row], torch.tensor(wanted), atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_merged_token_gets_the_attention_of_all_in_it():
    """Duplicated tokens are merged in pairs: afterwards all equals keeping each of them twice."""
    clip = random_clip(3)
    layer = clip.model.vision_model.encoder.layers[0]
    generator = torch.Generator().manual_seed(0)
    single = torch.randn(1, 5, layer.self_attn.embed_dim, generator=generator)
    size = torch.tensor([[1.0, 3.0, 1.0, 2.0, 1.0]])
    several = single.repeat_interleave(size[0].long(), dim=1)
    ends = []
    for states, sizes in ((single, size), (several, None)):
        alive = torch.ones(states.shape[:2])
        tokens = start_tokens(states, VISION, alive, torch.zeros(1, dtype=torch.long))
        tokens = type(tokens)(**{**vars(tokens), "size": sizes})
        # The rule keeps all: from this place on sizes count.
        rules = {0: RatioRule(1.0, 1.0, merge="proportional")}
        blocks = [ClipBlock(layer)]
        ends.append(
            run_encoder("vision", blocks, tokens, EncoderOptions(rules=rules)).tokens.states
        )
    first = (size[0].cumsum(0) - size[0]).long()
    torch.testing.assert_close(ends[0], ends[1][:, first], atol=1e-5, rtol=1e-5)


class Sizes(crossget.EvenTokenProblem):
    """A published model without its weights."""


def problem_of(rate, modes=TOKENS):
    shape = packaged_shape("clip-b16")
    on = Workload(image_tokens=197, text_tokens=40)
    places = {
        (part, layer): kind
        for part, kind in (("language", "text"), ("vision", "vision"))
        for layer in range(1, 12)
    }
    return Sizes(None, shape, on, modes, places, "matched", "proportional", rate)


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.4, 0.45])
def test_the_same_number_of_tokens_is_dropped_at_every_place(rate):
    problem = problem_of(rate)
    drops = problem.drops(problem.strength())
    assert problem.rate_of(drops) == pytest.approx(rate, abs=0.005)
    for part, left in (("vision", 197), ("language", 40)):
        gone = []
        for drop in (drop for drop in drops if drop.part == part):
            before, left = left, keep_count(left, drop.keep_ratio)
            gone.append(before - left)
        assert left >= 2
        assert max(gone) - min(gone) <= 1
    assert isinstance(problem, TokenProblem)


def test_two_tokens_stay_at_any_rate():
    problem = problem_of(0.9)
    left = {"vision": 197, "language": 40}
    for drop in problem.drops(11_000 * 2):
        left[drop.part] = keep_count(left[drop.part], drop.keep_ratio)
        assert left[drop.part] >= 2
    assert set(left.values()) == {2}


def test_clip_b_drops_sixteen_tokens_per_block():
    """The original's r of CLIP-B/16: 16 in each block."""
    problem = problem_of(0.5)
    strength = next(s for s in range(1, 11_000) if _first_gone(problem.drops(s)) == 16)
    left, gone = 197, []
    for drop in (drop for drop in problem.drops(strength + 2) if drop.part == "vision"):
        gone.append(left - keep_count(left, drop.keep_ratio))
        left -= gone[-1]
    assert set(gone) <= {15, 16}


def _first_gone(drops):
    seen = [drop for drop in drops if drop.place == ("vision", 1)]
    return 197 - keep_count(197, seen[0].keep_ratio) if seen else 0


def test_the_requested_rate_is_met(tmp_path):
    job = small_job("clip", tmp_path, 0.3, modes=TOKENS)
    outcome = crossget.prune(job)
    plan = outcome.plan
    assert plan.rate == pytest.approx(0.3, abs=0.005)
    assert plan.macs == sum(dropped_macs(job.adapter.shape, plan.workload, plan.drops).values())
    assert {(drop.ranking, drop.merge) for drop in plan.drops} == {("matched", "proportional")}
    assert outcome.steps == 0
    (line,) = [json.loads(each) for each in (tmp_path / "stages.jsonl").read_text().splitlines()]
    assert (line["rate"], line["mode"]) == (plan.rate, "vision_tokens+language_tokens")
    slim = job.adapter.cut(plan)
    forwarding = Forwarding(rules=rules_from_plan(plan.drops))
    plain = rules_from_plan(ways_of(plan, "matched", "similar").drops)
    with torch.no_grad():
        one, two, other = (
            each.score(job.data.validation[0], forwarding).loss
            for each, forwarding in (
                (job.adapter, forwarding),
                (slim, forwarding),
                (job.adapter, Forwarding(rules=plain)),
            )
        )
    torch.testing.assert_close(one, two)
    assert abs(float(one - other)) > 1e-5  # sizes count


def test_unsupported_requests_are_refused(tmp_path):
    with pytest.raises(CompExportError, match=r"rate 0\.99 is beyond .* at most 0\.\d\d"):
        crossget.prune(small_job("clip", tmp_path, 0.99, modes=TOKENS))
    plan = ways_of(blip_plan(random_blip("statement")), "matched", "proportional")
    with pytest.raises(ValueError, match="only attention in the towers of a clip"):
        PruningPlan.model_validate(plan.model_dump())


def test_macs_of_matching():
    """CLIP-B/16: cosines of all pairs and to the guide by 768-wide keys, and k × n shares by 768."""
    extra, left = macs_of_a_way("matched", "proportional")
    assert extra == (197 + 1) * 197 * 768 + left * 197 * 768
