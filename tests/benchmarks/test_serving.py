"""Asking servers: equal lengths or a refusal, TTFT at the first text, pictures that never come again."""

import argparse
import asyncio
import base64
import io
import json

import asking
import httpx
import pytest
from asking import Measured, Target, ask, check_lengths, choose_length, summary
from PIL import Image
from questions import Asked, Questions
from rivals.genai_server import Text, pictures_and_turns
from rivals.hub_names import hub_names
from serving import most_requests, ratios, rival

from comp.errors import CompExportError

QUESTION = Asked([{"type": "text", "text": "what?"}], "a fox")


def server(tokens_of, usage=True):
    """A transport whose answers have ``tokens_of(body)`` tokens; an error where that is a text."""

    def handle(request: httpx.Request) -> httpx.Response:
        tokens = tokens_of(json.loads(request.content))
        if isinstance(tokens, str):
            return httpx.Response(422, text=tokens)
        chunks = [{"choices": [{"delta": {"role": "assistant", "content": ""}}]}]
        chunks += [{"choices": [{"delta": {"content": f" w{n}"}}]} for n in range(tokens)]
        if usage:
            counts = {"completion_tokens": tokens, "prompt_tokens": 7}
            chunks.append({"choices": [], "usage": counts})
        lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
        return httpx.Response(200, text="".join([*lines, "data: [DONE]\n\n"]))

    return httpx.MockTransport(handle)


RIVAL = Target("rival", "http://server/v1", "m")


def asked_once(transport):
    async def work():
        async with httpx.AsyncClient(transport=transport) as client:
            return await ask(client, RIVAL, RIVAL.payload(QUESTION, 4))

    return asyncio.run(work())


def test_answer_is_counted_by_usage_or_else_by_chunks():
    reported = asked_once(server(lambda _: 3))
    assert (reported.tokens, reported.prompt_tokens, reported.reported) == (3, 7, True)
    assert reported.text == " w0 w1 w2"
    assert 0 < reported.first <= reported.whole
    counted = asked_once(server(lambda _: 3, usage=False))
    assert (counted.tokens, counted.reported) == (3, False)


def test_refusal_of_a_server_is_shown():
    with pytest.raises(CompExportError, match="rival: status 422: no such field"):
        asked_once(server(lambda _: "no such field"))


def test_server_that_is_not_there_is_named():
    def refuse(request):
        raise httpx.ConnectError("connection refused")

    with pytest.raises(CompExportError, match="rival: no answer from http://server/v1: connection"):
        asked_once(httpx.MockTransport(refuse))


def _transformers(body):
    """Refuses a field that it does not know; ends early unless its own field says otherwise."""
    if "ignore_eos" in body:
        return "Unexpected fields in the request: {'ignore_eos'}"
    return body["max_tokens"] if "generation_config" in body else 2


@pytest.mark.parametrize(
    ("behaviour", "field"),
    [
        (lambda body: body["max_tokens"] if body.get("ignore_eos") else 2, "ignore_eos"),
        (_transformers, "eos_token_id"),
        (lambda body: max(2, body.get("min_tokens", 0)), "min_tokens"),
    ],
)
def test_field_that_makes_answers_equally_long_is_chosen(monkeypatch, behaviour, field):
    transport = server(behaviour)
    monkeypatch.setattr(asking, "_client", lambda: httpx.AsyncClient(transport=transport))
    target = choose_length(RIVAL, [QUESTION] * 2, 4)
    assert target.length == field


def test_server_whose_answers_end_early_is_refused(monkeypatch):
    monkeypatch.setattr(asking, "_client", lambda: httpx.AsyncClient(transport=server(lambda _: 2)))
    with pytest.raises(CompExportError, match="answers of 2 to 2 tokens, not of 4"):
        choose_length(RIVAL, [QUESTION], 4)
    answers = [Measured(1, 2, 4), Measured(1, 2, 2, reported=False)]
    with pytest.raises(CompExportError, match="2 to 4 tokens, counted from chunks, not of 4"):
        check_lengths(RIVAL, answers, 4)


def test_summary_of_two_rounds_by_hand():
    rounds = [
        ([Measured(1.0, 3.0, 5), Measured(2.0, 4.0, 5)], 4.0),
        ([Measured(3.0, 5.0, 5), Measured(4.0, 6.0, 5)], 2.0),
    ]
    report = summary(rounds)
    assert report["tokens_per_second_by_round"] == [2.5, 5.0]
    assert report["tokens_per_second"] == 3.75
    assert report["requests_per_second"] == 0.75
    assert report["ttft_ms"]["p50"] == 2500
    assert report["ttft_ms_p50_by_round"] == [1500, 3500]
    assert report["tpot_ms"]["p99"] == 500
    assert report["completion_tokens"] == {"least": 5, "most": 5}


def test_no_picture_is_asked_about_twice():
    for questions in (Questions(3), Questions(3, side=28, text_tokens=12)):
        asked = [*questions.block(0), *questions.block(1)]
        urls = [part["image_url"]["url"] for each in asked for part in each.content[:1]]
        assert len(set(urls)) == 6
        assert [*questions.block(1)] == asked[3:]  # the same for every server
    words = {len(each.content[1]["text"].split()) for each in asked}
    assert words == {12 - 5}


def test_rival_is_named_with_url_and_model():
    target = rival("genai=http://127.0.0.1:8101/v1/=tiny")
    assert target == Target("genai", "http://127.0.0.1:8101/v1", "tiny")
    assert rival("cpp=http://h/v1=m=min_tokens").length == "min_tokens"
    for wrong in ("genai", "a=b", "a=b=", "a=b=c=d"):
        with pytest.raises(argparse.ArgumentTypeError):
            rival(wrong)


def test_ratios_stand_beside_the_best_rival_and_the_unloaded_server():
    names = (
        "together, dense",
        "together, compressed",
        "one by one, dense",
        "one by one, compressed",
    )

    def measured(speeds, p99):
        return {
            name: {
                "tokens_per_second": speed,
                "requests_per_second": speed,
                "ttft_ms": {"p99": p99},
            }
            for name, speed in zip((*names, "slow", "fast"), speeds, strict=True)
        }

    report = {
        "closed": {"1": measured([4, 8, 4, 8, 1, 2], 10), "16": measured([8, 20, 4, 8, 2, 5], 90)},
        "open": {"0.7": measured([4, 8, 4, 8, 1, 2], 25)},
    }
    figures = ratios(report, ["slow", "fast"])
    assert figures["together_to_one_by_one"] == {"dense": 2.0, "compressed": 2.5}
    assert figures["best_rival"] == "fast"
    assert (figures["dense_to_best_rival"], figures["compressed_to_best_rival"]) == (1.6, 4.0)
    assert figures["ttft_p99_to_unloaded"]["0.7"]["fast"] == 2.5
    assert most_requests(report["closed"])["one by one, compressed"] == 8


def test_text_of_tokens_waits_for_whole_characters():
    class Tokenizer:
        def decode(self, ids, skip_special_tokens):
            assert skip_special_tokens
            return bytes(ids).decode(errors="replace")

    text = Text(Tokenizer())
    fox = list("a 🦊".encode())
    parts = [text.more([each], last=False) for each in fox]
    assert parts == ["a", " ", "", "", "", "🦊"]
    assert Text(Tokenizer()).more(fox[:3], last=True) == "a \ufffd"


def test_genai_server_reads_pictures_and_refuses_links():
    with io.BytesIO() as file:
        Image.new("RGB", (3, 2), (1, 2, 3)).save(file, "PNG")
        uri = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": uri}},
        {"type": "text", "text": "what?"},
    ]
    pictures, turns = pictures_and_turns([{"role": "user", "content": content}])
    assert pictures[0].shape == (2, 3, 3)
    assert pictures[0][0, 0].tolist() == [1, 2, 3]
    assert [part["type"] for part in turns[0]["content"]] == ["image", "text"]
    content[0] = {"type": "image_url", "image_url": {"url": "https://host/picture.png"}}
    with pytest.raises(ValueError, match="data URIs"):
        pictures_and_turns([{"role": "user", "content": content}])


def test_names_of_the_tower_are_those_of_the_hub():
    names = hub_names(
        ["vision_tower.embeddings.x", "vision_tower.vision_model.y", "lm_head.weight"]
    )
    assert list(names.values()) == [
        "vision_tower.vision_model.embeddings.x",
        "vision_tower.vision_model.y",
        "lm_head.weight",
    ]
