r"""A server around OpenVINO GenAI's continuous batching, a rival of ``comp-export serve``; dense only.

    python3 -m venv OTHER
    OTHER/bin/pip install torch==2.13.0+cpu 'transformers<5.6' 'huggingface-hub<1.22' nncf openvino-genai
    OTHER/bin/pip install fastapi uvicorn pillow jinja2
    OTHER/bin/pip install --no-deps optimum-intel 'optimum~=2.3.0'
    OTHER/bin/optimum-cli export openvino -m CHECKPOINT --task image-text-to-text --weight-format fp32 MODEL
    PYTHONPATH=benchmarks OTHER/bin/python -m rivals.genai_server MODEL --port 8101 --threads 2

CHECKPOINT of tiny-llava is what ``benchmarks/rivals/hub_names.py`` writes. optimum-intel requires another
transformers than this project, so this module imports nothing of it.

It does with the library what OpenVINO Model Server does, as far as Python lets it:

* The pipeline has a process of its own (``rivals.genai_pipeline``). HTTP, decoding of pictures and
  detokenization are in another and never make it wait.
* ``--admit`` requests are added before each step, which encodes their pictures; GenAI's scheduler decides
  which tokens a step has.
* The chat template is the checkpoint's, rendered here, so that prompts have the tokens of the other servers.
* GenAI reads how to scale pictures from ``preprocessor_config.json``, which transformers 5 no longer writes.
  It is written from ``processor_config.json``; without it, every model would get 336 x 336 pixels.
* A chunk is sent for every token with text; GenAI's own streamer would hold back the last words.
* Prefix caching is off unless ``--prefix-caching``: pictures of the benchmark are all unlike.
* ``--cache-size`` is in GB. The precision of caches is the runtime's choice (8 bits on CPUs, which helps it);
  ``--property KV_CACHE_PRECISION=f32`` makes it that of the others.

It supports what ``benchmarks/serving.py`` sends: text and pictures as data URIs, greedy, streamed,
``max_tokens``, ``ignore_eos``. Anything else is refused with status 400.
"""

import argparse
import asyncio
import base64
import io
import json
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rivals.genai_pipeline import Engine, Pipeline

FIELDS = {
    *("model", "messages", "max_tokens", "temperature", "ignore_eos", "stream", "stream_options"),
}
UNFINISHED = "\ufffd"  # bytes of a character whose rest is not there yet
PACKAGES = ("openvino-genai", "openvino", "openvino-tokenizers")


class Text:
    """The text of an answer, token by token."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.ids: list[int] = []
        self._sent = 0

    def more(self, ids: list[int], last: bool) -> str:
        """Return the text that ``ids`` add; an unfinished character waits for its rest."""
        self.ids += ids
        whole = self._tokenizer.decode(self.ids, skip_special_tokens=True)
        if whole.endswith(UNFINISHED) and not last:
            return ""
        text, self._sent = whole[self._sent :], len(whole)
        return text


def pictures_and_turns(messages: list[Any]) -> tuple[list[Any], list[Any]]:
    """The pictures of a conversation, and its turns for the chat template.

    Raises:
        ValueError: a picture is no data URI, or a part is of another kind.
    """
    import numpy as np
    from PIL import Image

    pictures, turns = [], []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        words: list[dict[str, str]] = []
        for part in parts:
            if part["type"] == "text":
                words.append({"type": "text", "text": part["text"]})
            elif part["type"] == "image_url":
                head, found, data = part["image_url"]["url"].partition(";base64,")
                if not found or not head.startswith("data:image/"):
                    raise ValueError("pictures are data URIs with base64")
                with Image.open(io.BytesIO(base64.b64decode(data))) as image:
                    pictures.append(np.asarray(image.convert("RGB")))
                words.append({"type": "image"})
            else:
                raise ValueError(f"no part of type {part['type']!r} here")
        turns.append({"role": message["role"], "content": words})
    return pictures, turns


@dataclass(frozen=True)
class Chunks:
    """The lines of a streamed answer."""

    model: str
    created: int = field(default_factory=lambda: int(time.time()))
    id: str = field(default_factory=lambda: f"chatcmpl-{time.time_ns()}")

    def line(self, **more: Any) -> str:
        """A chunk."""
        return f"data: {json.dumps({**vars(self), 'object': 'chat.completion.chunk', **more})}\n\n"

    def choice(self, delta: dict[str, str], end: str | None = None) -> str:
        """A chunk with text, or with the reason of the end."""
        return self.line(choices=[{"index": 0, "delta": delta, "finish_reason": end}])

    def usage(self, prompt: int, completion: int) -> str:
        """The chunk that counts tokens."""
        counts = {"prompt_tokens": prompt, "completion_tokens": completion}
        return self.line(choices=[], usage=counts | {"total_tokens": prompt + completion})


class Chat:
    """Answers of one model."""

    def __init__(self, engine: Engine, pipeline: Pipeline) -> None:
        from jinja2.sandbox import ImmutableSandboxedEnvironment
        from tokenizers import Tokenizer

        self.name = engine.model.name
        self._pipeline = pipeline
        self._tokenizer = Tokenizer.from_file(str(engine.model / "tokenizer.json"))
        template = (engine.model / "chat_template.jinja").read_text(encoding="utf-8")
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        self._template = environment.from_string(template)

    async def answer(self, body: dict[str, Any]) -> AsyncIterator[str]:
        """Check a request, and return its lines.

        Raises:
            ValueError: it has something that is not supported; says what.
        """
        unknown = sorted(set(body) - FIELDS)
        if unknown or not body.get("stream") or body.get("temperature") != 0:
            raise ValueError(f"only greedy streamed answers here; unknown fields: {unknown}")
        pictures, turns = await asyncio.to_thread(pictures_and_turns, body["messages"])
        prompt = self._template.render(messages=turns, add_generation_prompt=True)
        limit, ignore_eos = int(body["max_tokens"]), bool(body.get("ignore_eos"))
        return self._lines(prompt, pictures, limit, ignore_eos)

    async def _lines(
        self, prompt: str, pictures: list[Any], limit: int, ignore_eos: bool
    ) -> AsyncIterator[str]:
        chunks, text, prompt_tokens = Chunks(self.name), Text(self._tokenizer), 0
        async for tokens in self._pipeline.answer(prompt, pictures, limit, ignore_eos):
            if tokens.error:
                yield chunks.line(error={"message": tokens.error})
                return
            if more := text.more(tokens.ids, tokens.end is not None):
                yield chunks.choice({"content": more})
            if tokens.end:
                prompt_tokens = tokens.prompt_tokens
                yield chunks.choice({}, tokens.end)
        yield chunks.usage(prompt_tokens, len(text.ids))
        yield "data: [DONE]\n\n"


def make_app(engine: Engine, pipeline: Pipeline) -> Any:
    """The application."""
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse, StreamingResponse

    @asynccontextmanager
    async def listening(_: FastAPI) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        threading.Thread(target=pipeline.listen, args=(loop,), daemon=True).start()
        yield

    app, chat = FastAPI(lifespan=listening), Chat(engine, pipeline)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": chat.name, "object": "model"}]}

    @app.get("/version")
    async def versions() -> dict[str, Any]:
        return {
            **{each: version(each) for each in PACKAGES},
            "scheduler": pipeline.scheduler,
            "engine": {key: str(value) for key, value in vars(engine).items()},
        }

    @app.post("/v1/chat/completions")
    async def completions(request: Request) -> Any:
        try:
            lines = await chat.answer(json.loads(await request.body()))
        except (ValueError, KeyError, OSError) as error:
            message = {"message": str(error), "type": "invalid_request_error"}
            return JSONResponse({"error": message}, 400)
        return StreamingResponse(lines, media_type="text/event-stream")

    return app


def write_preprocessor(model: Path) -> None:
    """Write ``preprocessor_config.json`` from ``processor_config.json``, unless it is there."""
    place = model / "preprocessor_config.json"
    if not place.exists():
        whole = json.loads((model / "processor_config.json").read_text(encoding="utf-8"))
        place.write_text(json.dumps(whole["image_processor"], indent=2) + "\n", encoding="utf-8")


def parse() -> tuple[Engine, str, int]:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("model", type=Path, help="directory that optimum-cli wrote")
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=8101)
    add("--threads", type=int, required=True, help="INFERENCE_NUM_THREADS")
    add("--max-num-seqs", type=int, default=16)
    add("--max-num-batched-tokens", type=int, default=1024)
    add("--cache-size", type=int, default=2, help="GB")
    add("--prefix-caching", action="store_true")
    add("--admit", type=int, default=1, help="requests that are added before a step, at most")
    add("--property", action="append", default=[], metavar="KEY=VALUE", help="of OpenVINO")
    args = parser.parse_args()
    engine = Engine(
        model=args.model.resolve(),
        threads=args.threads,
        rows=args.max_num_seqs,
        batched_tokens=args.max_num_batched_tokens,
        cache_gb=args.cache_size,
        prefix_caching=args.prefix_caching,
        admit=args.admit,
        properties=dict(each.split("=", 1) for each in args.property),
    )
    return engine, args.host, args.port


def main() -> None:
    """Serve."""
    import uvicorn

    engine, host, port = parse()
    write_preprocessor(engine.model)
    app = make_app(engine, Pipeline.start(engine))
    uvicorn.run(app, host=host, port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
