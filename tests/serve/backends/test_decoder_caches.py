"""Caches that a decode step writes in place: extended when full, with the tokens of growing caches."""

from types import SimpleNamespace

import numpy as np
import pytest

from comp.errors import CompExportError
from serve.backends import llava_decoder as decoder
from serve.generation.options import GenerationOptions

TOKENS = 9


def answer_of(engine, picture, factor=1.0):
    options = GenerationOptions(max_new_tokens=TOKENS, ignore_eos=True, keep_factor=factor)
    return engine.generate([picture], "what is it?", options).token_ids


def let_caches_grow(engine, monkeypatch):
    """Return new caches in every step, as on a GPU."""
    for part in ("_buffers", "_steps"):
        monkeypatch.setattr(engine._backend._decoder, part, None)


@pytest.mark.parametrize("name", ["dense", "compressed"])
@pytest.mark.parametrize("room", [1, 4, 256])
def test_in_place_caches_give_the_answers_of_growing_caches(
    name, room, request, picture, monkeypatch
):
    engine = request.getfixturevalue(name)
    monkeypatch.setattr(decoder, "ROOM", room)
    in_place = answer_of(engine, picture)
    let_caches_grow(engine, monkeypatch)
    assert answer_of(engine, picture) == in_place
    assert len(in_place) == TOKENS


def test_a_keep_factor_starts_with_full_caches(compressed, picture, monkeypatch):
    in_place = answer_of(compressed, picture, 0.5)
    let_caches_grow(compressed, monkeypatch)
    assert answer_of(compressed, picture, 0.5) == in_place


def test_an_older_graph_is_refused(compressed):
    """A graph whose caches only grow is refused with a reason, not at the first token."""
    backend = compressed._backend
    inputs = {k: v for k, v in backend._decoder._graph.inputs.items() if k != "cache_lengths"}
    with pytest.raises(CompExportError, match=r"no input cache_lengths.*export it again"):
        decoder.Decoder(SimpleNamespace(inputs=inputs), compressed.manifest, None)


def test_a_step_copies_no_cache_while_it_fits(compressed, picture, monkeypatch):
    part, steps = compressed._backend._decoder, []
    step = part.step

    def watched(embeds, batch, state):
        logits, after = step(embeds, batch, state)
        steps.append([a is b for a, b in zip(state.caches, after.caches, strict=True)])
        return logits, after

    monkeypatch.setattr(part, "step", watched)
    monkeypatch.setattr(decoder, "ROOM", 4)
    answer_of(compressed, picture)
    # Of eight steps the first four fill the longest caches; those after a drop begin
    # with the same number of places and fewer tokens, so they have room for longer.
    longest = [same[0] for same in steps]
    assert longest == [True] * 4 + [False] + [True] * 3
    assert all(same[-1] for same in steps[:5])


def test_logits_of_a_step_are_not_overwritten(compressed):
    """The next step must not write into the same place."""
    backend = compressed._backend
    ids = np.arange(10, 19)[None]
    split = (np.zeros((1, 0), np.int64), np.arange(9)[None])
    state = backend.prefill(None, ids, *split, 1.0).state
    first, state = backend.step([11], state)
    before = first.copy()
    second, _ = backend.step([200], state)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, before)
