"""The real client of OpenAI against the server: whole and streamed answers, errors, usage."""

from dataclasses import replace

import openai
import pytest

from serve.generation.options import GenerationOptions
from tests.serve.random_llava import noise

QUESTION = "what is it?"


@pytest.fixture(scope="session")
def client(running):
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)


def asking(uri, text=QUESTION, **image):
    return [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": uri, **image}},
                {"type": "text", "text": text},
            ],
        }
    ]


def test_the_models_are_listed(client):
    assert [each.id for each in client.models.list()] == ["tiny", "tiny-0.4"]
    assert client.models.retrieve("tiny").owned_by == "comp-export"


@pytest.mark.parametrize("name", ["tiny", "tiny-0.4"])
def test_an_answer_is_that_of_the_engine(client, uri, name, dense, compressed):
    engine = dense if name == "tiny" else compressed
    alone = engine.generate([noise(0)], QUESTION, GenerationOptions(max_new_tokens=12))
    done = client.chat.completions.create(
        model=name, messages=asking(uri), max_tokens=12, temperature=0
    )
    choice = done.choices[0]
    assert choice.message.content == alone.text
    assert choice.finish_reason == ("stop" if alone.finish_reason == "eos" else alone.finish_reason)
    assert done.usage.prompt_tokens == alone.prompt_tokens
    assert done.usage.completion_tokens == len(alone.token_ids)
    assert done.usage.prompt_tokens_details.image_tokens == alone.image_tokens
    kept = done.comp_export["image_tokens_kept"]
    assert [each["kept"] for each in kept] == [int(t.size) for _, t in alone.kept.seen()]
    assert done.comp_export["ttft_ms"] > 0


def test_a_streamed_answer_is_the_same(client, uri):
    request = {"model": "tiny-0.4", "messages": asking(uri), "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**request)
    stream = client.chat.completions.create(
        **request, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert reasons[-1] == whole.choices[0].finish_reason
    assert set(reasons[:-1]) == {None}
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(c.usage is None for c in chunks[:-1])


def test_choices_stop_strings_and_logprobs(client):
    done = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": QUESTION}],
        max_completion_tokens=6,
        n=3,
        seed=5,
        temperature=1.5,
        logprobs=True,
        top_logprobs=2,
    )
    assert [choice.index for choice in done.choices] == [0, 1, 2]
    tokens = [[t.token for t in choice.logprobs.content] for choice in done.choices]
    assert len({tuple(each) for each in tokens}) > 1
    for choice in done.choices:
        for token in choice.logprobs.content:
            assert len(token.top_logprobs) == 2
            assert token.logprob <= token.top_logprobs[0].logprob <= 0
            assert bytes(token.bytes).decode() == token.token
    assert done.usage.completion_tokens == sum(len(each) for each in tokens)


def test_a_conversation_with_earlier_turns(client, uri, dense):
    messages = [
        {"role": "system", "content": "be short"},
        *asking(uri),
        {"role": "assistant", "content": "a dog"},
        {"role": "user", "content": "where is it?"},
    ]
    first = client.chat.completions.create(model="tiny", messages=asking(uri), temperature=0)
    both = client.chat.completions.create(model="tiny", messages=messages, temperature=0)
    assert both.usage.prompt_tokens > first.usage.prompt_tokens
    assert both.usage.prompt_tokens_details.image_tokens == dense.manifest.vision.image_tokens


def test_detail_and_keep_factor_change_what_is_kept(client, uri):
    def kept(extra=None, **image):
        done = client.chat.completions.create(
            model="tiny-0.4",
            messages=asking(uri, **image),
            max_tokens=1,
            temperature=0,
            extra_body=extra,
        )
        return [each["kept"] for each in done.comp_export["image_tokens_kept"]]

    assert kept(detail="low") == kept({"keep_factor": 0.5}) < kept() == kept(detail="auto")
    assert kept(detail="original") > kept()
    assert kept({"keep_factor": 0.5}, detail="high") == kept(detail="low")
    shown = client.chat.completions.create(
        model="tiny-0.4",
        messages=asking(uri),
        max_tokens=1,
        extra_body={"return_kept_indices": True},
    ).comp_export["image_tokens_kept"]
    assert all(len(each["indices"]) == each["kept"] for each in shown)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"model": "gpt-4o"}, openai.NotFoundError, "this server has tiny, tiny-0.4"),
        ({"tools": [{"type": "function"}]}, openai.BadRequestError, "tools is not supported"),
        ({"response_format": {"type": "json_object"}}, openai.BadRequestError, "response_format"),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"extra_body": {"temprature": 0}}, openai.BadRequestError, "did you mean 'temperature'"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, openai.BadRequestError, "role"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, openai.BadRequestError, "last"),
        ({"stop": ["a"] * 5}, openai.BadRequestError, "stop"),
        ({"messages": asking("http://10.0.0.1/a.png")}, openai.BadRequestError, "data URI"),
        ({"messages": asking("file:///etc/passwd")}, openai.BadRequestError, "data URI"),
        ({"messages": asking("data:image/png;base64,AAAA")}, openai.BadRequestError, "picture"),
        ({"messages": asking("data:image/png;base64,A")}, openai.BadRequestError, "base64"),
        ({"messages": [{"role": "user", "content": "w " * 500}]}, openai.BadRequestError, "tokens"),
    ],
)
def test_errors_name_the_field(client, change, error, words):
    request = {"model": "tiny", "messages": [{"role": "user", "content": QUESTION}]}
    with pytest.raises(error, match=words) as raised:
        client.chat.completions.create(**request | change)
    assert set(raised.value.body) == {"message", "type", "param", "code"}
    assert "Traceback" not in raised.value.message


def test_no_ops_are_ignored(client):
    done = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": QUESTION}],
        user="me",
        presence_penalty=0,
        max_tokens=2,
        response_format={"type": "text"},
        tools=[],
    )
    assert done.usage.completion_tokens <= 2


def test_the_responses_api(client, uri):
    content = [
        {"type": "input_image", "image_url": uri, "detail": "auto"},
        {"type": "input_text", "text": QUESTION},
    ]
    request = {
        "model": "tiny-0.4",
        "input": [{"role": "user", "content": content}],
        "max_output_tokens": 12,
        "temperature": 0,
    }
    whole = client.responses.create(**request)
    chat = client.chat.completions.create(
        model="tiny-0.4", messages=asking(uri), max_tokens=12, temperature=0
    )
    assert whole.output_text == chat.choices[0].message.content
    assert whole.usage.input_tokens == chat.usage.prompt_tokens
    events = list(client.responses.create(**request, stream=True))
    assert "".join(e.delta for e in events if e.type.endswith("text.delta")) == whole.output_text
    assert events[0].type == "response.created"
    assert events[-1].response.output_text == whole.output_text
    assert events[-1].type == f"response.{whole.status}"
    assert [each.sequence_number for each in events] == list(range(len(events)))


def test_metrics_count_what_was_answered(client, running, uri):
    import httpx

    def value(name, **labels):
        wanted = {"model_name": "tiny", **labels}
        for line in httpx.get(f"{running.url}/metrics").text.splitlines():
            if line.startswith(f"comp_export_{name}{{") and all(
                f'{key}="{label}"' in line for key, label in wanted.items()
            ):
                return float(line.rpartition(" ")[2])
        return 0.0

    before = value("generation_tokens_total"), value("time_to_first_token_seconds_count")
    done = client.chat.completions.create(
        model="tiny", messages=asking(uri), max_tokens=3, temperature=0
    )
    after = value("generation_tokens_total"), value("time_to_first_token_seconds_count")
    assert after == (before[0] + done.usage.completion_tokens, before[1] + 1)
    assert value("num_requests_running") == value("num_requests_waiting") == 0
    failures = value("request_failure_total", status="400")
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model="tiny", input="a dog")
    assert value("request_failure_total", status="400") == failures


def test_an_adaptive_server_raises_the_factor_when_idle(client, running, uri, monkeypatch):
    monkeypatch.setattr(
        running.server, "settings", replace(running.server.settings, keep_factor="auto")
    )

    def factor(model="tiny-0.4", extra=None, **image):
        done = client.chat.completions.create(
            model=model, messages=asking(uri, **image), max_tokens=1, extra_body=extra
        )
        return done.comp_export["keep_factor"]

    assert factor() == factor(detail="auto") == 1.5
    assert factor(detail="high") == factor("tiny") == 1.0
    assert factor(detail="low") == factor(extra={"keep_factor": 0.5}) == 0.5
    streamed = client.chat.completions.create(
        model="tiny-0.4",
        messages=asking(uri),
        max_tokens=1,
        stream=True,
        stream_options={"include_usage": True},
    )
    assert list(streamed)[-1].comp_export["keep_factor"] == 1.5
    response = client.responses.create(model="tiny-0.4", input="what?", max_output_tokens=1)
    assert response.comp_export["keep_factor"] == 1.5


def test_the_next_turn_reads_only_what_is_new(client, uri):
    first = client.chat.completions.create(
        model="tiny", messages=asking(uri, "name one thing"), max_tokens=4, temperature=0
    )
    turns = [
        *asking(uri, "name one thing"),
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "and another?"},
    ]
    usage = client.chat.completions.create(model="tiny", messages=turns, max_tokens=4).usage
    images = usage.prompt_tokens_details.image_tokens
    assert images < usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens
    compressed = client.chat.completions.create(model="tiny-0.4", messages=turns, max_tokens=4)
    assert compressed.usage.prompt_tokens_details.cached_tokens == 0
