"""Models of other tasks on one server: embeddings, ranking, judging, BLIP's answers and captions."""

import base64

import httpx
import numpy as np
import openai
import pytest

from demo.remote.client import Remote
from demo.remote.generator import RemoteGenerator
from serve.artifacts import DEFAULT_VARIANT
from serve.generation.options import GenerationOptions
from serve.server.models import Limits, load_models
from serve.server.settings import Server, Settings
from tests.serve.random_llava import noise
from tests.serve.server.conftest import Running, data_uri

pytestmark = pytest.mark.slow
TASKS = ("clip", "statement", "question", "caption")
TEXTS = ["a dog", "two cats on the left"]


@pytest.fixture(scope="module")
def served(fresh_run):
    places = [f"{task}={fresh_run(task) / 'onnx'}" for task in TASKS]
    started = Running(Server(load_models(places, DEFAULT_VARIANT, Limits(), "cpu", 1), Settings()))
    yield started
    started.stop()


@pytest.fixture(scope="module")
def client(served):
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def engine_of(served, task):
    return served.server.models.called(task).engine


def post(served, path, **body):
    return httpx.post(f"{served.url}/v1/{path}", json=body, timeout=60)


def test_embeddings_of_texts_and_images(served, client):
    engine = engine_of(served, "clip")
    done = client.embeddings.create(model="clip", input=TEXTS)  # in base64, as the client asks
    texts = np.array([each.embedding for each in done.data])
    assert np.allclose(texts, engine.embed_texts(TEXTS).embeds, atol=1e-6)
    assert done.usage.prompt_tokens == sum(engine.encode(text, "").size for text in TEXTS)
    mixed = [{"image": data_uri(noise(1))}, TEXTS[0]]
    body = post(served, "embeddings", model="clip", input=mixed).json()
    rows = np.array([each["embedding"] for each in body["data"]])
    assert np.allclose(rows[0], engine.embed_images([noise(1)]).embeds[0], atol=1e-5)
    assert np.allclose(rows[1], texts[0], atol=1e-5)
    raw = post(served, "embeddings", model="clip", input="a dog", encoding_format="base64").json()
    decoded = np.frombuffer(base64.b64decode(raw["data"][0]["embedding"]), "<f4")
    assert np.allclose(decoded, texts[0], atol=1e-6)


def test_ranking_of_texts_for_an_image_and_the_reverse(served):
    engine = engine_of(served, "clip")
    ranking = engine.rank([noise(1)], TEXTS)
    query = {"image": data_uri(noise(1))}
    body = post(served, "rerank", model="clip", query=query, documents=TEXTS).json()
    order = [each["index"] for each in body["results"]]
    assert order == list(np.argsort(-ranking.of_texts[0], kind="stable"))
    assert body["results"][0]["relevance_score"] == pytest.approx(
        ranking.of_texts[0].max(), abs=1e-4
    )
    images = [{"image": data_uri(noise(n))} for n in range(3)]
    body = post(
        served,
        "rerank",
        model="clip",
        query="a dog",
        documents=images,
        top_n=2,
        return_documents=True,
    ).json()
    assert len(body["results"]) == 2
    first = body["results"][0]
    assert first["document"] == images[first["index"]]


def test_statements_are_judged(served):
    engine = engine_of(served, "statement")
    images = [noise(1), noise(2)]
    statement = "a dog is on the left"
    expected = engine.judge(images, statement)
    given = {"text": statement, "images": [data_uri(each) for each in images]}
    body = post(served, "classify", model="statement", input=given).json()
    row = body["data"][0]
    assert row["label"] == ("true" if expected.verdict else "false")
    assert row["probs"][1] == pytest.approx(expected.probability, abs=1e-5)
    assert sum(row["probs"]) == pytest.approx(1)


@pytest.mark.parametrize(("task", "words"), [("question", "what is it?"), ("caption", "a picture")])
def test_blip_answers_chats(served, client, task, words):
    alone = engine_of(served, task).generate([noise(1)], words, GenerationOptions(max_new_tokens=8))
    content = [
        {"type": "image_url", "image_url": {"url": data_uri(noise(1))}},
        {"type": "text", "text": words},
    ]
    request = {
        "model": task,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 8,
        "temperature": 0,
    }
    done = client.chat.completions.create(**request)
    assert done.choices[0].message.content == alone.text
    stream = client.chat.completions.create(**request, stream=True)
    text = "".join(each.choices[0].delta.content or "" for each in stream)
    assert text == alone.text


TURN = [{"role": "user", "content": "a"}]
BOTH = {"text": "a", "image": "b"}
NO_IMAGES = {"text": "a", "images": []}


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("embeddings", {"model": "question", "input": "a"}, "for /v1/chat/completions"),
        ("chat/completions", {"model": "clip", "messages": TURN}, "for /v1/embeddings"),
        ("embeddings", {"model": "clip", "input": "a", "dimensions": 8}, "dimensions is not"),
        ("embeddings", {"model": "clip", "input": BOTH}, "give text or image"),
        ("embeddings", {"model": "clip", "input": ["a"] * 300}, "256 at most"),
        ("embeddings", {"model": "clip", "input": [""]}, "empty"),
        ("rerank", {"model": "clip", "query": "a", "documents": ["b"]}, "images for a text"),
        ("classify", {"model": "statement", "input": NO_IMAGES}, "give 2"),
        ("classify", {"model": "clip", "input": NO_IMAGES}, "for /v1/embeddings"),
        ("chat/completions", {"model": "question", "messages": TURN}, "image"),
    ],
)
def test_refusals(served, path, body, words):
    response = post(served, path, **body)
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]


def test_blip_takes_one_turn(served):
    turns = [{"role": "system", "content": "x"}, {"role": "user", "content": "a"}]
    response = post(served, "chat/completions", model="question", messages=turns)
    assert "takes one question" in response.json()["error"]["message"]


def test_the_page_of_the_api_loads_nothing_from_elsewhere(served):
    page = httpx.get(f"{served.url}/docs").text
    assert "swagger" in page
    assert "http://" not in page.replace(served.url, "")
    assert "https://" not in page


@pytest.mark.parametrize(
    ("task", "words"), [("caption", ""), ("caption", "a"), ("question", "what?")]
)
def test_the_page_asks_a_server_as_it_asks_an_engine(served, task, words):
    engine = engine_of(served, task)
    there = RemoteGenerator(Remote.at(served.url), task, engine.manifest, "onnxruntime", True)
    options = GenerationOptions(max_new_tokens=6)
    answer, own = (each.generate([noise(2)], words, options) for each in (there, engine))
    assert answer.text == own.text
    assert [(place, kept.tolist()) for place, kept in answer.kept.seen()] == [
        (place, kept.tolist()) for place, kept in own.kept.seen()
    ]
