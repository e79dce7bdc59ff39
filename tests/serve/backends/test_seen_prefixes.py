"""Prompts that begin like earlier ones read only what is new, and have the same answers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.backends.seen_prefixes import LEAST_TOKENS, PromptKey, SeenPrefixes
from serve.engines.llava import Engine
from serve.generation.options import GenerationOptions
from tests.serve.random_llava import noise

OPTIONS = GenerationOptions(max_new_tokens=8, ignore_eos=True)


def key(*ids, images=(), begins=()):
    return PromptKey(np.array(ids), images, begins)


def test_an_image_with_other_pixels_ends_the_common_beginning():
    first = key(1, 9, 9, 2, 9, 9, 3, images=(b"a", b"b"), begins=(1, 4))
    assert first.common(first) == 7
    assert first.common(key(1, 9, 9, 2, 5, images=(b"a",), begins=(1,))) == 4
    assert first.common(key(1, 9, 9, 2, 9, 9, 3, images=(b"a", b"c"), begins=(1, 4))) == 4
    assert first.common(key(1, 9, 9, 2, 9, 9, 3, images=(b"c", b"b"), begins=(1, 4))) == 1
    assert first.common(key(4)) == 0


@given(st.lists(st.integers(0, 1), max_size=8), st.lists(st.integers(0, 1), max_size=8))
def test_the_common_beginning_is_that_of_the_lists(mine, theirs):
    count = 0
    while count < min(len(mine), len(theirs)) and mine[count] == theirs[count]:
        count += 1
    ours = (
        PromptKey(np.array(mine, np.int64), (), ()),
        PromptKey(np.array(theirs, np.int64), (), ()),
    )
    assert ours[0].common(ours[1]) == ours[1].common(ours[0]) == count


def test_what_was_used_last_stays_and_one_token_is_left_to_read():
    known = SeenPrefixes(2)
    long, other = key(*range(30)), key(*range(100, 130))
    known.keep(long, ("long",), 1)
    known.keep(other, ("other",), 1)
    assert known.beginning_of(long).held == 29
    known.keep(key(*range(200, 230)), ("third",), 1)  # other goes
    assert known.beginning_of(other) is None
    assert known.beginning_of(key(*range(20), 7)).caches == ("long",)
    assert known.beginning_of(key(*range(LEAST_TOKENS - 1), 77, 78)) is None
    known.keep(key(*range(31)), ("longer",), 1)  # in place of its beginning
    assert known.beginning_of(long).caches == ("longer",)
    assert known.beginning_of(key(*range(200, 231))).held == 30
    known.keep(key(*range(300, 330)), ("too large",), 3)
    assert known.beginning_of(key(*range(300, 330))) is None
    assert known.hits == 29 + 20 + 29 + 30
    assert known.queries == 30 + 30 + 21 + 17 + 30 + 31 + 30


@pytest.fixture
def engine(dense_artifact):
    return Engine.load(dense_artifact, device="cpu", threads=1)


def test_answers_stay_the_same(engine):
    requests = [
        ([noise(0)], "what is it?"),
        ([noise(0)], "what is on the left of the dog?"),  # the same image
        ([noise(1)], "what is it?"),  # another one
        ([noise(0), noise(1)], "what is it?"),
        ([noise(0)], "what is it?"),  # all of it again
        ([], "what is it?"),
    ]
    before = [engine.generate(*each, OPTIONS) for each in requests]
    known = engine.keep_prefixes(1 << 30)
    after = [engine.generate(*each, OPTIONS) for each in requests]
    assert [each.token_ids for each in after] == [each.token_ids for each in before]
    assert [each.cached_tokens for each in before] == [0] * len(requests)
    image = engine.manifest.vision.image_tokens
    cached = [each.cached_tokens for each in after]
    assert cached[0] == cached[2] == cached[5] == 0
    assert cached[1] > image < cached[3]
    assert cached[4] == after[4].prompt_tokens - 1
    assert known.hits == sum(cached)
    assert known.queries == sum(each.prompt_tokens for each in after)


def test_models_that_drop_tokens_read_the_whole_prompt(compressed_artifact):
    engine = Engine.load(compressed_artifact, device="cpu", threads=1)
    assert engine.keep_prefixes(1 << 30) is None
    answers = [engine.generate([noise(0)], "what is it?", OPTIONS) for _ in range(2)]
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[1].cached_tokens == 0
