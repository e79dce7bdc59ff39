import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comp.errors import CompExportError
from comp.families.llava.decoder import DecoderOptions
from comp.families.llava.forward import run_llava
from comp.importance.decoder_rankings import diversity, mean_attention
from comp.plan import DropPlan, PruningPlan
from comp.tokens.drop_rules import RatioRule
from comp.tokens.state import ANSWER, TEXT, VISION
from tests.comp.small import questions, small_adapter
from tests.export.tiny import make_plan, tiny_config

RANKINGS = ("received", "mean_head", "next_layer", "diversity")


def test_the_mean_is_over_the_kept_heads():
    scores = torch.log(torch.tensor([[[3.0, 1.0], [1.0, 1.0], [1.0, 9.0]]]))  # [1, 3, 2]
    whole = mean_attention(scores, torch.ones(3))
    assert whole[0].tolist() == pytest.approx([(0.75 + 0.5 + 0.1) / 3, (0.25 + 0.5 + 0.9) / 3])
    two = mean_attention(scores, torch.tensor([1.0, 1.0, 0.0]))
    assert two[0].tolist() == pytest.approx([(0.75 + 0.5) / 2, (0.25 + 0.5) / 2])


def test_tokens_that_repeat_every_pivot_rank_last():
    # Seven image tokens at these angles, and one text token at 0 degrees. Pivots: the four image
    # tokens with the longest keys, all at 0 degrees, and the text token.
    angles = [0, 0, 0, 0, 10, 90, 180, 0]
    norms = [9, 8, 7, 6, 5, 4, 3, 1]
    normed = torch.tensor(
        [[[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in angles]]
    )
    key = torch.zeros(1, 2, 8, 2)
    key[0, 0, :, 0] = torch.tensor(norms) * -1.0  # L1: the sign does not matter
    key[0, 1, :, 1] = torch.arange(8.0) * 100  # of a removed head
    kind = torch.tensor([[VISION] * 7 + [TEXT]])
    result, margin = diversity(key, torch.tensor([1.0, 0.0]), normed, kind, torch.ones(1, 8))
    expected = [0.5] * 4 + [(1 - math.cos(math.radians(10))) / 4, 0.25, 0.5, 0.5]
    assert result[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert float(margin) == pytest.approx((6 - 5) / 6)


def test_distance_to_one_pivot_suffices():
    """DART keeps the tokens that are far from any of its pivots."""
    normed = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.6, 0.8], [0.0, 0.0]]])
    key = torch.tensor([9.0, 8.0, 7.0, 6.0, 5.0]).reshape(1, 1, 5, 1)
    kind = torch.tensor([[VISION] * 5])
    result, margin = diversity(key, torch.ones(1), normed, kind, torch.ones(1, 5))
    # Token 0 has pivot 1 at 90 degrees; token 4 is no direction at all: cosine 0 to each.
    assert result[0].tolist() == pytest.approx([0.75, 0.75, 0.75, 0.5 + 0.4 / 4, 0.25])
    assert float(margin) == pytest.approx(1 / 6)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    vision=st.integers(0, 12),
    text=st.integers(1, 7),
    padding=st.integers(0, 3),
    answers=st.integers(0, 3),
)
def test_padding_and_answers_change_no_pivot(seed, vision, text, padding, answers):
    torch.manual_seed(seed)
    count = vision + text
    key, normed = torch.randn(2, 3, count, 4), torch.randn(2, count, 6)
    kind = torch.tensor([[VISION] * vision + [TEXT] * text] * 2)
    alone, margin = diversity(key, torch.ones(3), normed, kind, torch.ones(2, count))
    more = padding + answers
    kinds = torch.cat([kind, torch.full((2, more), TEXT)], 1)
    kinds[:, count + padding :] = ANSWER
    alive = torch.ones(2, count + more)
    alive[:, count : count + padding] = 0
    padded, same = diversity(
        torch.cat([key, 50 * torch.randn(2, 3, more, 4)], 2),
        torch.ones(3),
        torch.cat([normed, torch.randn(2, more, 6)], 1),
        kinds,
        alive,
    )
    assert torch.allclose(padded[:, :count], alone, atol=1e-6)
    assert torch.allclose(margin, same)


@pytest.mark.parametrize("ranking", RANKINGS)
def test_teacher_forcing_keeps_what_the_prompt_alone_keeps(ranking):
    adapter = small_adapter()
    batch = adapter.collate(questions(4))
    rule = RatioRule(0.4, 0.7, ranking=ranking)
    options = DecoderOptions(rules={1: rule, 3: rule})
    with torch.no_grad():
        together = run_llava(adapter.model, batch, options).kept
        for row in range(4):
            length = int(batch.query[row]) + 1
            prompt = type(batch)(
                batch.pixel_values[row : row + 1],
                *(
                    getattr(batch, n)[row : row + 1, :length]
                    for n in ("input_ids", "kind", "alive")
                ),
                batch.query[row : row + 1],
                batch.labels[row : row + 1, :length],
            )
            alone = run_llava(adapter.model, prompt, options).kept
            for place in (1, 3):
                kept = together[place]
                of_prompt = (kept.alive[row] > 0) & (kept.kind[row] != ANSWER)
                assert kept.index[row][of_prompt].tolist() == alone[place].index[0].tolist()


def test_a_plan_without_rankings_is_unchanged(tmp_path):
    plan = make_plan(tiny_config())
    written = json.loads(plan.model_dump_json())
    assert [drop.pop("ranking") for drop in written["drops"]] == ["received", "received"]
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(written))
    assert PruningPlan.load(path) == plan


def test_encoders_do_not_rank_as_decoders_do(tmp_path):
    written = json.loads(make_plan(tiny_config(), ranking="next_layer").model_dump_json())
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(written))
    assert PruningPlan.load(path).drops[0] == DropPlan(
        after_layer=1, vision_keep_ratio=0.5, text_keep_ratio=0.8, ranking="next_layer"
    )
    path.write_text(json.dumps(written | {"family": "clip"}))
    with pytest.raises(CompExportError, match="only the language part of a llava"):
        PruningPlan.load(path)
