"""Continuous batching in OpenVINO's paged attention gives the answers of one after another."""

import time

import pytest

from export.exporter import Origin, export_artifact
from export.graph.builder import Target
from serve.engines.llava import Engine
from serve.generation.options import GenerationOptions
from serve.scheduling.scheduler import Scheduler
from tests.serve.random_llava import noise
from tests.serve.scheduling.test_scheduler import PLACES, QUESTIONS, sent

pytest.importorskip("openvino", reason="runs in OpenVINO: pip install -e '.[openvino]'")


@pytest.fixture(scope="module", params=["dense", "compressed"])
def engine(request, checkpoint, plan, tmp_path_factory):
    out = tmp_path_factory.mktemp("rows") / "onnx"
    chosen = plan if request.param == "compressed" else None
    origin = Origin.of_plan(plan) if chosen else Origin("tiny-random")
    export_artifact(checkpoint.path, out, origin, Target("standard", "float32"), plan=chosen)
    return Engine.load(out, threads=1, backend="openvino")


def test_answers_are_those_of_one_after_another(engine):
    requests = [
        ([noise(number % 3)] * (number % 2), QUESTIONS[number % 3], 3 + 7 * number % 40)
        for number in range(9)
    ]
    alone = [
        engine.generate(images, prompt, GenerationOptions(max_new_tokens=tokens, ignore_eos=True))
        for images, prompt, tokens in requests
    ]
    for rows in (1, 3):
        scheduler = Scheduler(engine, rows, PLACES, 64)
        try:
            clients = []
            for images, prompt, tokens in requests:
                options = {"max_new_tokens": tokens, "ignore_eos": True}
                clients.append(sent(scheduler, images, prompt, **options)[0])
                time.sleep(0.003)
            for client, expected in zip(clients, alone, strict=True):
                assert client.result.token_ids == expected.token_ids
                assert client.result.kept.to_dict() == expected.kept.to_dict()
        finally:
            scheduler.stop()


def test_prompts_that_begin_alike_are_read_on(engine):
    known = engine.keep_prefixes(1 << 30)
    assert (known is None) == bool(engine.manifest.decoder.drops)
    if known is None:
        return
    options = GenerationOptions(max_new_tokens=12, ignore_eos=True)
    fresh = Engine.load(engine._backend.tokenizer.parent, threads=1, backend="openvino")
    for question in (*QUESTIONS, QUESTIONS[0]):
        expected = fresh.generate([noise(1)], question, options)
        assert engine.generate([noise(1)], question, options).token_ids == expected.token_ids
    assert known.hits > 2 * engine.manifest.vision.image_tokens
