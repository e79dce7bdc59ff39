"""Read a request of Triton: the question, its pictures, and the options of the answer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.checkpoints.chat_template import user_turn
from comp.errors import CompExportError
from serve.generation.options import GenerationOptions
from serve.server.conversation import Conversation
from serve.server.pictures import bytes_of_data_uri
from serve.triton.ports import IMAGE, STREAM, TEXT
from serve.triton.settings import GeneratorSettings

MAX_IMAGE = 16 << 20  # bytes of a picture's file, as in ``comp-export serve``
Input = Callable[[str], "NDArray[Any] | None"]  # an input of the request by its name, if it has it


@dataclass(frozen=True)
class Asked:
    """A request, read: nothing of it stays in Triton's memory.

    Attributes:
        images: files of pictures.
        streams: whether each token is a response.
    """

    conversation: Conversation
    images: list[bytes]
    options: GenerationOptions
    streams: bool


def read_request(read: Input, settings: GeneratorSettings) -> Asked:
    """Read a request.

    Raises:
        CompExportError: names the input whose value does not fit.
    """
    (text,) = _strings(read, TEXT)
    images = [_picture(each) for each in _bytes(read, IMAGE)]
    if len(images) > settings.max_images:
        raise CompExportError(f"{len(images)} images, {settings.max_images} at most: send fewer")
    options = GenerationOptions(
        max_new_tokens=int(_number(read, "max_tokens", settings.max_new_tokens)),
        temperature=float(_number(read, "temperature", 0.0)),
        top_p=float(_number(read, "top_p", 1.0)),
        seed=int(_number(read, "seed", settings.seed)),
        stop=tuple(_strings(read, "stop")),
        keep_factor=float(_number(read, "keep_factor", 1.0)),
    )
    conversation = Conversation(user_turn(text, len(images)), [], None)
    return Asked(conversation, images, options, bool(_number(read, STREAM, 0)))


def _number(read: Input, name: str, default: float) -> Any:
    values = read(name)
    if values is None:
        return default
    if values.size != 1:
        raise CompExportError(f"{name} has {values.size} values: send one")
    return values.reshape(-1)[0]


def _bytes(read: Input, name: str) -> list[bytes]:
    """The strings of an input, copied out of Triton's memory."""
    values = read(name)
    return [] if values is None else [_as_bytes(each) for each in np.ravel(values).tolist()]


def _as_bytes(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)


def _strings(read: Input, name: str) -> list[str]:
    values = _bytes(read, name)
    if name == TEXT and len(values) != 1:
        raise CompExportError(f"{name} has {len(values)} values: send one question a request")
    try:
        return [each.decode() for each in values]
    except UnicodeDecodeError as error:
        raise CompExportError(f"{name} is not UTF-8: {error.reason}") from error


def _picture(data: bytes) -> bytes:
    """The file of a picture; JSON clients send it as a data URI."""
    if data.startswith(b"data:"):
        return bytes_of_data_uri(data.decode(errors="replace"), IMAGE, MAX_IMAGE)
    if len(data) > MAX_IMAGE:
        raise CompExportError(
            f"{IMAGE} has {len(data)} bytes, {MAX_IMAGE} at most: send a smaller picture"
        )
    return data
