"""A model of a server that answers or captions, with the methods of an engine."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from comp.data.images import MAX_BYTES, ImageSource
from comp.errors import CompExportError
from comp.utils.files import read_regular
from demo.remote.client import OTHER, Remote
from export.artifact.manifest import Manifest
from serve.generation.options import GenerationOptions
from serve.generation.results import (
    Event,
    Finished,
    FinishReason,
    Generation,
    Timings,
    TokenText,
)

PATH = "/v1/chat/completions"
REASONS: dict[str, FinishReason] = {"stop": "eos", "length": "length"}


@dataclass(frozen=True)
class RemoteKept:
    """The kept tokens of an answer's first image, as the server lists them (see ``Kept``)."""

    places: tuple[tuple[str, NDArray[np.int64]], ...]

    @classmethod
    def of(cls, extension: dict[str, Any]) -> "RemoteKept":
        """Read the field ``comp_export`` of an answer."""
        return cls(
            tuple(
                (str(each["place"]), np.array(each["indices"], dtype=np.int64))
                for each in extension["image_tokens_kept"]
            )
        )

    def seen(self, image: int = 0) -> list[tuple[str, NDArray[np.int64]]]:
        """Names of the places, and the kept tokens; of the first image alone."""
        return list(self.places) if image == 0 else []

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return {place: tokens.tolist() for place, tokens in self.places}

    def lines(self) -> list[str]:
        """Lines for a terminal, one per place."""
        return [f"after {place}: {tokens.size} image tokens kept" for place, tokens in self.places]


@dataclass(frozen=True)
class RemoteGenerator:
    """A model that runs on a server.

    Attributes:
        id: its name there.
        manifest: of its artifact.
        provider: what runs it there.
        verified: whether the server says that its artifact was verified.
    """

    remote: Remote
    id: str
    manifest: Manifest
    provider: str
    verified: bool

    def stream(
        self, images: Sequence[ImageSource], prompt: str, options: GenerationOptions
    ) -> Iterator[Event]:
        """Yield an answer as it is generated, as ``Engine.stream``; the last event is ``Finished``.

        The ids of tokens are not known. Kept tokens come at the end. Times are the server's.

        Raises:
            CompExportError: the server does not answer, or refuses the request.
        """
        reason, text = "", ""
        for chunk in self.remote.events(PATH, self._body(images, prompt, options)):
            try:
                if chunk["choices"]:
                    (choice,) = chunk["choices"]
                    more = choice["delta"].get("content") or ""
                    reason = choice["finish_reason"] or reason
                else:
                    yield Finished("", _generation(text, REASONS[reason], chunk))
                    return
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise CompExportError(
                    f"{self.remote.url} answers something else: {OTHER}"
                ) from error
            text += more
            if more:
                yield TokenText(-1, more)
        raise CompExportError(f"{self.remote.url} said nothing of usage: {OTHER}")

    def generate(
        self, images: Sequence[ImageSource], prompt: str, options: GenerationOptions
    ) -> Generation:
        """Wait for a whole answer; errors as for ``stream``."""
        *_, last = self.stream(images, prompt, options)
        assert isinstance(last, Finished)
        return last.generation

    def _body(
        self, images: Sequence[ImageSource], prompt: str, options: GenerationOptions
    ) -> dict[str, Any]:
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": _address(image)}} for image in images
        ]
        if prompt.strip():
            content.append({"type": "text", "text": prompt})
        return {
            "model": self.id,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": options.max_new_tokens,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "seed": options.seed,
            "keep_factor": options.keep_factor,
            "return_kept_indices": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


def _generation(text: str, reason: FinishReason, chunk: dict[str, Any]) -> Generation:
    """The record of an answer, from its last chunk."""
    usage, own = chunk["usage"], chunk["comp_export"]
    details = usage["prompt_tokens_details"]
    tokens = int(usage["completion_tokens"])
    steps = tokens if reason == "eos" else tokens - 1  # the end token takes one, too
    timings = Timings(0.0, 0.0, float(own["ttft_ms"]), float(own["tpot_ms"]) * steps, steps)
    return Generation(
        text=text,
        token_ids=(),
        finish_reason=reason,
        prompt_tokens=int(usage["prompt_tokens"]),
        image_tokens=int(details["image_tokens"]),
        kept=RemoteKept.of(own),
        timings=timings,
        cached_tokens=int(details["cached_tokens"]),
    )


def _address(image: ImageSource) -> str:
    """A picture as a data URI: a file as it is, a Pillow image as PNG."""
    if isinstance(image, Image.Image):
        with io.BytesIO() as stream:
            image.save(stream, "PNG")
            data = stream.getvalue()
    elif isinstance(image, bytes):
        data = image
    else:
        data = read_regular(Path(image), "image", "name an image file", MAX_BYTES)
    # The server looks at the bytes; the kind that is written here does not matter.
    return "data:image/png;base64," + base64.b64encode(data).decode()
