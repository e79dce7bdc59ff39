"""Ask servers that speak chat completions, from several clients; measure TTFT, TPOT and throughput."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import numpy as np

from comp.errors import CompExportError
from questions import Asked

PERCENTILES = (50, 95, 99)
SECONDS = 600.0  # that a request may take

# Fields that make every answer ``max_tokens`` long; the first that a server accepts and obeys is used.
LENGTH_FIELDS: Mapping[str, Callable[[int], dict[str, Any]]] = {
    "ignore_eos": lambda _: {"ignore_eos": True},  # comp-export, vLLM, llama.cpp
    "eos_token_id": lambda _: {"generation_config": '{"eos_token_id": -1}'},  # transformers
    "min_tokens": lambda max_tokens: {"min_tokens": max_tokens},  # llama-cpp-python
    "none": lambda _: {},
}


@dataclass(frozen=True)
class Target:
    """A model of a server; ``length`` is a key of ``LENGTH_FIELDS``, or empty until one is chosen."""

    name: str
    url: str  # with /v1
    model: str
    length: str = ""

    def payload(self, asked: Asked, max_tokens: int) -> bytes:
        """The body of a request."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": asked.content}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **LENGTH_FIELDS[self.length or "none"](max_tokens),
        }
        return json.dumps(body).encode()


@dataclass(frozen=True)
class Measured:
    """One answer.

    Attributes:
        first: seconds to the first chunk with text.
        whole: seconds to the end of the stream.
        tokens: of the answer, by ``usage``, or chunks with text where a server reports no usage.
        reported: whether the server reported them.
        prompt_tokens: by ``usage``; 0 where none is reported.
        text: the answer.
        extension: what only comp-export reports.
    """

    first: float
    whole: float
    tokens: int
    reported: bool = True
    prompt_tokens: int = 0
    text: str = ""
    extension: dict[str, Any] = field(default_factory=dict)

    @property
    def each(self) -> float:
        """Seconds per token after the first."""
        return (self.whole - self.first) / max(1, self.tokens - 1)


Round = tuple[list[Measured], float]  # answers, in the order of questions, and the seconds of all


async def ask(client: httpx.AsyncClient, target: Target, payload: bytes) -> Measured:
    """Send one request and read its stream.

    Raises:
        CompExportError: the server is not there, refused the request, or ended it with an error.
    """
    try:
        return await _ask(client, target, payload)
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise CompExportError(
            f"{target.name}: no answer from {target.url}: {reason}; is it running?"
        ) from error


async def _ask(client: httpx.AsyncClient, target: Target, payload: bytes) -> Measured:
    began = time.perf_counter()
    first, texts, usage, extension = 0.0, [], {}, {}
    headers = {"Content-Type": "application/json"}
    url = f"{target.url}/chat/completions"
    async with client.stream("POST", url, content=payload, headers=headers) as response:
        if response.status_code != 200:
            said = (await response.aread()).decode(errors="replace")
            raise CompExportError(f"{target.name}: status {response.status_code}: {said[:400]}")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise CompExportError(f"{target.name}: {str(chunk['error'])[:400]}")
            for choice in chunk["choices"]:
                if text := choice["delta"].get("content"):
                    first = first or time.perf_counter() - began
                    texts.append(text)
            usage = chunk.get("usage") or usage
            extension = chunk.get("comp_export") or extension
    whole = time.perf_counter() - began
    return Measured(
        first=first or whole,
        whole=whole,
        tokens=usage.get("completion_tokens", len(texts)),
        reported="completion_tokens" in usage,
        prompt_tokens=usage.get("prompt_tokens", 0),
        text="".join(texts),
        extension=extension,
    )


def _client() -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=SECONDS, limits=httpx.Limits(max_connections=None))


async def closed_loop(
    target: Target, questions: Sequence[Asked], max_tokens: int, clients: int
) -> Round:
    """Let clients ask one question after another."""
    payloads = [target.payload(each, max_tokens) for each in questions]
    left = iter(range(len(payloads)))
    done: dict[int, Measured] = {}

    async def work(client: httpx.AsyncClient) -> None:
        for number in left:
            done[number] = await ask(client, target, payloads[number])

    async with _client() as client:
        began = time.perf_counter()
        await asyncio.gather(*(work(client) for _ in range(clients)))
        seconds = time.perf_counter() - began
    return [done[number] for number in range(len(payloads))], seconds


async def open_loop(
    target: Target, questions: Sequence[Asked], max_tokens: int, rate: float, seed: int
) -> Round:
    """Send requests at Poisson arrivals of ``rate`` a second, whether or not answers have come."""
    payloads = [target.payload(each, max_tokens) for each in questions]
    gaps = np.random.default_rng(seed).exponential(1 / rate, len(payloads))
    async with _client() as client:
        began = time.perf_counter()
        tasks = []
        for payload, due in zip(payloads, np.cumsum(gaps), strict=True):
            await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
            tasks.append(asyncio.create_task(ask(client, target, payload)))
        done = await asyncio.gather(*tasks)
        return list(done), time.perf_counter() - began


def choose_length(target: Target, questions: Sequence[Asked], max_tokens: int) -> Target:
    """Choose the fields by which a server gives answers of ``max_tokens`` tokens.

    Raises:
        CompExportError: it obeys none of them; says what came instead.
    """
    if target.length:
        return target
    reasons = []
    for name in LENGTH_FIELDS:
        each = replace(target, length=name)
        try:
            answers, _ = asyncio.run(closed_loop(each, questions, max_tokens, 1))
            check_lengths(each, answers, max_tokens)
        except CompExportError as error:
            reasons.append(f"{name}: {error}")
            continue
        return each
    raise CompExportError("; ".join(reasons))


def check_lengths(target: Target, answers: Sequence[Measured], max_tokens: int) -> None:
    """Refuse answers of another length: their throughput would not be comparable.

    Raises:
        CompExportError: names the server and the lengths.
    """
    lengths = sorted({each.tokens for each in answers})
    if lengths != [max_tokens]:
        counted = "" if all(each.reported for each in answers) else ", counted from chunks"
        raise CompExportError(
            f"{target.name}: answers of {lengths[0]} to {lengths[-1]} tokens{counted}, not of {max_tokens}: "
            "name the field that makes them equal (--rival NAME=URL=MODEL=FIELD), or allow it with "
            "--unequal-lengths"
        )


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds at ``PERCENTILES``; nothing of no times."""
    if not seconds:
        return {}
    return {f"p{p}": round(1000 * float(np.percentile(seconds, p)), 2) for p in PERCENTILES}


def summary(rounds: Sequence[Round]) -> dict[str, Any]:
    """Throughput by round with its median, and percentiles of times over all requests, in milliseconds."""
    requests = [len(done) / seconds for done, seconds in rounds]
    tokens = [sum(each.tokens for each in done) / seconds for done, seconds in rounds]
    every = [each for done, _ in rounds for each in done]
    lengths = [each.tokens for each in every]
    return {
        "requests": len(every),
        "requests_per_second": round(float(np.median(requests)), 3),
        "tokens_per_second": round(float(np.median(tokens)), 2),
        "tokens_per_second_by_round": [round(each, 2) for each in tokens],
        "ttft_ms": percentiles([each.first for each in every]),
        "ttft_ms_p50_by_round": [
            percentiles([each.first for each in done])["p50"] for done, _ in rounds
        ],
        "tpot_ms": percentiles([each.each for each in every if each.tokens > 1]),
        "whole_ms": percentiles([each.whole for each in every]),
        "completion_tokens": {"least": min(lengths), "most": max(lengths)},
        "completion_tokens_reported": all(each.reported for each in every),
        "prompt_tokens": float(np.median([each.prompt_tokens for each in every])),
    }
