"""Continuous batching gives the answers that the engine gives one after another, whoever comes and goes."""

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comp.errors import CompExportError
from serve.generation.options import GenerationOptions
from serve.generation.results import Finished, Prefilled, TokenText
from serve.scheduling.one_by_one import OneByOne
from serve.scheduling.requests import CancelledError, Load, QueueFullError, Request
from serve.scheduling.scheduler import Scheduler
from serve.scheduling.warm_up import warm_up
from tests.serve.random_llava import noise

PLACES = 200
QUESTIONS = ("what is it?", "where is the dog?", "how many are there on the left of the red thing?")


class Client:
    """Follows a request."""

    def __init__(self):
        self.events, self.ended = [], threading.Event()

    def __call__(self, event):
        self.events.append(event)
        if isinstance(event, Finished | BaseException):
            self.ended.set()

    @property
    def result(self):
        assert self.ended.wait(60)
        return (
            self.events[-1].generation if isinstance(self.events[-1], Finished) else self.events[-1]
        )


@pytest.fixture
def scheduler_of(request):
    made = []

    def make(engine, rows=3, places=PLACES, queue=64, **more):
        made.append(Scheduler(engine, rows, places, queue, **more))
        return made[-1]

    yield make
    for scheduler in made:
        scheduler.stop()


def sent(scheduler, images, prompt, **options):
    client = Client()
    chosen = GenerationOptions(**options)
    prepared = scheduler.engine.prepare(images, prompt, chosen)
    request = Request(prepared, chosen, client)
    scheduler.submit(request)
    return client, request


@settings(max_examples=8, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("which", ["dense", "compressed"])
def test_answers_are_those_of_one_after_another(which, data, request):
    engine = request.getfixturevalue(which)
    scheduler = Scheduler(engine, data.draw(st.integers(1, 4)), PLACES, 64)
    try:
        clients = []
        for number in range(data.draw(st.integers(2, 9))):
            images = [noise(number)] * data.draw(st.integers(0, 2))
            prompt = data.draw(st.sampled_from(QUESTIONS))
            options = {
                "max_new_tokens": data.draw(st.integers(1, 12)),
                "temperature": data.draw(st.sampled_from([0.0, 0.8])),
                "seed": number,
                "ignore_eos": True,
            }
            clients.append((sent(scheduler, images, prompt, **options)[0], images, prompt, options))
            time.sleep(data.draw(st.sampled_from([0, 0.002, 0.02])))
        for client, images, prompt, options in clients:
            alone = engine.generate(images, prompt, GenerationOptions(**options))
            together = client.result
            assert together.token_ids == alone.token_ids
            assert together.text == alone.text
            assert together.finish_reason == alone.finish_reason
            assert together.kept.to_dict() == alone.kept.to_dict()
            kinds = [type(event) for event in client.events]
            assert kinds == [Prefilled, *[TokenText] * len(alone.token_ids), Finished]
    finally:
        scheduler.stop()


def test_another_keep_factor_runs_beside_the_others(compressed, scheduler_of):
    scheduler = scheduler_of(compressed)
    factors = (1.0, 0.5, 1.5)
    clients = [
        sent(scheduler, [noise(1)], QUESTIONS[0], keep_factor=factor, max_new_tokens=8)[0]
        for factor in factors
    ]
    for client, factor in zip(clients, factors, strict=True):
        options = GenerationOptions(keep_factor=factor, max_new_tokens=8)
        alone = compressed.generate([noise(1)], QUESTIONS[0], options)
        assert client.result.token_ids == alone.token_ids
        assert client.result.kept.to_dict() == alone.kept.to_dict()


def test_a_cancelled_answer_ends_and_the_others_go_on(dense, scheduler_of):
    scheduler = scheduler_of(dense)
    options = {"max_new_tokens": 100, "ignore_eos": True}
    first, request = sent(scheduler, [], QUESTIONS[0], **options)
    second, _ = sent(scheduler, [], QUESTIONS[1], **options)
    request.cancel()
    assert isinstance(first.result, CancelledError)
    alone = dense.generate([], QUESTIONS[1], GenerationOptions(**options))
    assert second.result.token_ids == alone.token_ids
    assert scheduler.drain(5)
    assert scheduler.load == Load(0, 0)


def test_a_passed_deadline_ends_a_request(dense, scheduler_of):
    scheduler = scheduler_of(dense)
    client = Client()
    options = GenerationOptions(max_new_tokens=100, ignore_eos=True)
    prepared = dense.prepare([], QUESTIONS[0], options)
    scheduler.submit(Request(prepared, options, client, deadline=time.monotonic() - 1))
    assert "deadline" in str(client.result)


def test_a_follower_that_fails_ends_its_own_request_only(dense, scheduler_of):
    scheduler = scheduler_of(dense)
    options = GenerationOptions(max_new_tokens=20, ignore_eos=True)

    def gone(event):
        raise ConnectionResetError(str(type(event)))

    scheduler.submit(Request(dense.prepare([], QUESTIONS[0], options), options, gone))
    other, _ = sent(scheduler, [], QUESTIONS[1], max_new_tokens=20, ignore_eos=True)
    assert len(other.result.token_ids) == 20


def test_a_full_queue_and_a_prompt_too_long_are_refused(dense, scheduler_of):
    scheduler = scheduler_of(dense, rows=1, places=60, queue=1)
    options = {"max_new_tokens": 1000, "ignore_eos": True}
    with pytest.raises(CompExportError, match=r"the prompt has \d+ tokens, .* may have 60"):
        sent(scheduler, [noise(0)] * 3, "what is it? " * 5, **options)
    long, _ = sent(scheduler, [], QUESTIONS[0], **options)
    while scheduler.load != Load(0, 1):  # until it left the queue
        time.sleep(0.001)
    sent(scheduler, [], QUESTIONS[0], **options)
    with pytest.raises(QueueFullError, match="1 requests wait already"):
        sent(scheduler, [], QUESTIONS[0], **options)
    assert long.result.finish_reason == "length"
    assert long.result.prompt_tokens + len(long.result.token_ids) == 60


def test_draining_finishes_answers_and_takes_no_more(dense, scheduler_of):
    scheduler = scheduler_of(dense)
    client, _ = sent(scheduler, [], QUESTIONS[0], max_new_tokens=60, ignore_eos=True)
    assert scheduler.drain(60)
    assert len(client.result.token_ids) == 60
    with pytest.raises(QueueFullError, match="stopping"):
        sent(scheduler, [], QUESTIONS[0])


def test_stopping_ends_what_runs(dense, scheduler_of):
    scheduler = scheduler_of(dense, rows=1)
    options = {"max_new_tokens": 150, "ignore_eos": True}
    clients = [sent(scheduler, [], QUESTIONS[0], **options)[0] for _ in range(3)]
    scheduler.stop()
    results = [client.result for client in clients]
    assert any(isinstance(result, CancelledError) for result in results)


def test_a_conversation_is_read_whole(dense):
    turn = [{"type": "image"}, {"type": "text", "text": QUESTIONS[0]}]
    alone = dense.prepare([noise(0)], QUESTIONS[0])
    same = dense.prepare([noise(0)], [{"role": "user", "content": turn}])
    assert np.array_equal(alone.prompt.input_ids, same.prompt.input_ids)
    more = [
        {"role": "user", "content": turn},
        {"role": "assistant", "content": [{"type": "text", "text": "a dog"}]},
        {"role": "user", "content": [{"type": "text", "text": QUESTIONS[1]}]},
    ]
    assert dense.prepare([noise(0)], more).prompt.length > alone.prompt.length
    with pytest.raises(CompExportError, match="contains <image>"):
        dense.prepare([], [{"role": "user", "content": [{"type": "text", "text": "<image> hi"}]}])


def test_one_by_one_gives_the_stream_of_the_engine(dense):
    worker = OneByOne(queue=8)
    try:
        options = GenerationOptions(max_new_tokens=8, ignore_eos=True)
        clients = [Client() for _ in QUESTIONS]
        for question, client in zip(QUESTIONS, clients, strict=True):
            worker.submit(
                Request(lambda chosen, q=question: dense.stream([], q, chosen), options, client)
            )
        for question, client in zip(QUESTIONS, clients, strict=True):
            assert client.result.token_ids == dense.generate([], question, options).token_ids
        assert worker.drain(10)
    finally:
        worker.stop()


def test_one_by_one_stops_within_an_answer(dense):
    worker = OneByOne(queue=8)
    options = GenerationOptions(max_new_tokens=150, ignore_eos=True)
    begun = threading.Event()
    client = Client()

    def follow(event):
        client(event)
        begun.set()

    worker.submit(Request(lambda chosen: dense.stream([], QUESTIONS[0], chosen), options, follow))
    assert begun.wait(30)
    worker.stop()
    assert isinstance(client.result, CancelledError)


def test_prompts_of_one_size_are_read_together(compressed, scheduler_of, monkeypatch):
    sizes, begin = [], compressed.begin

    def counted(prepared, options, places=None):
        sizes.append(len(prepared))
        return begin(prepared, options, places)

    monkeypatch.setattr(compressed, "begin", counted)
    scheduler = scheduler_of(compressed, rows=8, together=3)
    options = {"max_new_tokens": 30, "ignore_eos": True}
    first, all_wait = Client(), threading.Event()

    def follow(event):
        assert all_wait.wait(60)  # in the scheduler's thread
        first(event)

    chosen = GenerationOptions(**options)
    scheduler.submit(Request(compressed.prepare([], QUESTIONS[2], chosen), chosen, follow))
    clients = [
        (sent(scheduler, [noise(n)], QUESTIONS[0], **(options | more))[0], n, more)
        for n, more in enumerate([{}, {}, {}, {}, {"keep_factor": 0.5}, {"keep_factor": 0.5}])
    ]
    all_wait.set()
    results = [client.result for client, _, _ in clients]
    assert sizes == [1, 3, 1, 2]
    for (_, number, more), together in zip(clients, results, strict=True):
        chosen = GenerationOptions(**(options | more))
        alone = compressed.generate([noise(number)], QUESTIONS[0], chosen)
        assert together.token_ids == alone.token_ids
        assert together.kept.to_dict() == alone.kept.to_dict()
    assert first.result.finish_reason == "length"


def test_a_prompt_that_fails_among_others_ends_alone(compressed, scheduler_of, monkeypatch):
    begin = compressed.begin

    def failing(prepared, options, places=None):
        if any(each.max_new_tokens == 5 for each in options):
            raise CompExportError("not finite")
        return begin(prepared, options, places)

    monkeypatch.setattr(compressed, "begin", failing)
    scheduler = scheduler_of(compressed, rows=8)
    clients = [
        sent(scheduler, [noise(n)], QUESTIONS[0], max_new_tokens=4 + n, ignore_eos=True)[0]
        for n in range(4)
    ]
    results = [client.result for client in clients]
    assert isinstance(results.pop(1), CompExportError)
    assert [len(each.token_ids) for each in results] == [4, 6, 7]


def test_an_engine_is_run_before_its_first_request(dense, compressed, scheduler_of, monkeypatch):
    scheduler, one = scheduler_of(compressed, rows=2), OneByOne(queue=2)
    try:
        warm_up(compressed, scheduler)
        warm_up(dense, one)
        for worker in (scheduler, one):
            assert worker.drain(10)
        assert scheduler._rows._bound  # it made a step
    finally:
        one.stop()

    def failing(*_):
        raise CompExportError("not finite")

    monkeypatch.setattr(compressed, "begin", failing)
    with pytest.raises(CompExportError, match="not finite"):
        warm_up(compressed, scheduler_of(compressed))
