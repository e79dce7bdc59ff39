"""The factor on keep ratios by load."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comp.errors import CompExportError
from serve.generation.options import GenerationOptions
from serve.generation.results import Prefilled
from serve.scheduling.adaptive import ADAPTIVE, AdaptiveFactor, factor_named
from serve.scheduling.one_by_one import OneByOne
from serve.scheduling.requests import Load, Request
from tests.serve.random_llava import noise


@pytest.mark.parametrize(
    ("load", "factor"),
    [
        (Load(0, 0), 1.5),
        (Load(0, 1), 1.0),
        (Load(0, 16), 1.0),
        (Load(4, 16), 0.875),
        (Load(16, 16), 0.5),
        (Load(400, 16), 0.5),
    ],
)
def test_the_factor_falls_with_the_queue(load, factor):
    assert AdaptiveFactor(most=1.5, least=0.5, long_queue=16).at(load) == pytest.approx(factor)


@given(st.integers(0, 300), st.integers(0, 64))
def test_a_longer_queue_never_raises_it(waiting, running):
    now, longer = Load(waiting, running), Load(waiting + 1, running)
    assert ADAPTIVE.least <= ADAPTIVE.at(longer) <= ADAPTIVE.at(now) <= ADAPTIVE.most


@pytest.mark.parametrize("text", ["fast", "0", "-1", "nan", "inf", "1001", ""])
def test_other_factors_are_refused(text):
    with pytest.raises(CompExportError, match=f"--keep-factor {text}: give auto, or a number"):
        factor_named(text)
    assert factor_named("auto") == "auto"
    assert factor_named("0.5") == 0.5


class Idle(OneByOne):
    """Takes requests only when its test does."""

    def start(self):
        """Start no thread."""


def test_a_worker_chooses_when_it_takes_a_request():
    worker, options = Idle(queue=64), GenerationOptions(keep_factor=0.75)
    for adapts in (False, *[True] * 18):
        worker.submit(Request(lambda _: iter(()), options, print, adapts=adapts))
    taken = [worker.take()[0].options.keep_factor for _ in range(19)]
    assert worker.take() == []
    assert taken[0] == 0.75  # its own
    assert taken[1:4] == [0.5, 0.5, 0.53125]  # 17, 16 and 15 wait
    assert taken[-1] == 1.5  # nothing waits


def test_the_answer_has_the_chosen_factor(compressed):
    events, options = [], GenerationOptions(max_new_tokens=1)
    worker = OneByOne(queue=2)
    try:
        image = [noise(1)]
        work = lambda chosen: compressed.stream(image, "what?", chosen)  # noqa: E731
        worker.submit(Request(work, options, events.append, adapts=True))
        assert worker.drain(30)
    finally:
        worker.stop()
    most = GenerationOptions(max_new_tokens=1, keep_factor=ADAPTIVE.most)
    expected = compressed.generate(image, "what?", most).kept.to_dict()
    (prefilled,) = [event for event in events if isinstance(event, Prefilled)]
    assert prefilled.kept.to_dict() == expected
    assert compressed.generate(image, "what?", options).kept.to_dict() != expected
