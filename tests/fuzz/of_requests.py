"""Hostile pictures, words and numbers of one request."""

import io
from pathlib import Path
from random import Random
from typing import Any

from comp.errors import CompExportError
from tests.fuzz.base import Base
from tests.fuzz.families import QUESTIONS, LlavaReference, llava_answers
from tests.fuzz.making import Trial
from tests.fuzz.mutations import break_bytes, hostile_text


def images(rng: Random, base: Base, scratch: Path) -> Trial:
    """Bytes of pictures of all formats: pixels as transformers makes them, or a refusal."""
    import numpy as np
    from PIL import Image, ImageOps

    from export.artifact.load import read_manifest
    from serve.engines.preprocess import preprocess

    kinds = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "TGA", "JPEG2000", "AVIF")
    kind, mode = rng.choice(kinds), rng.choice(("RGB", "RGBA", "L", "P", "LA", "1", "CMYK"))
    stream = io.BytesIO()
    with Image.open(base.picture) as picture:
        size = (rng.randrange(1, 90), rng.randrange(1, 90))
        try:
            picture.convert(mode).resize(size).save(stream, kind)
        except (OSError, KeyError, ValueError):  # a format that has no such mode
            stream = io.BytesIO()
            picture.convert("RGB").resize(size).save(stream, kind)
    data, deed = break_bytes(rng, stream.getvalue(), rng.choice((0, 64, 300)))
    settings = read_manifest(base.of("llava") / "onnx").image_processor

    def product() -> Any:
        return preprocess([data], settings).round(4).tobytes()

    def right() -> Any:
        from transformers import CLIPImageProcessorPil

        processor = CLIPImageProcessorPil.from_pretrained(base.of("llava") / "checkpoint")
        opened = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        if opened.mode.startswith("I"):  # 16 bits: by their upper byte, a rule of our own
            opened = Image.fromarray((np.asarray(opened) >> 8).clip(0, 255).astype(np.uint8))
        result: Any = processor(opened, return_tensors="np")["pixel_values"]
        return result.astype(np.float32).round(4).tobytes()

    return Trial(f"{kind} {mode} {size}: {deed}", product, right, None, ("image",))


_LOADED: dict[str, Any] = {}  # objects of this process that load slowly, and that no trial changes


def prompts(rng: Random, base: Base, scratch: Path) -> Trial:
    """Words of any kind: token ids and answers as of transformers, or a refusal."""
    from PIL import Image

    from serve.engines.llava import Engine

    if "engine" not in _LOADED:
        _LOADED["engine"] = Engine.load(base.of("llava") / "onnx-dense", device="cpu", threads=1)
        _LOADED["reference"] = LlavaReference(base.of("llava") / "checkpoint")
    words = hostile_text(rng, ("what", "is", "the", "fox", "left of", "?", "WHAT", "zzyzx"))
    count = rng.choice((0, 1, 1, 1, 2, 3))

    def right() -> Any:
        with Image.open(base.picture) as picture:
            # Texts that place all of their images themselves are used as they are.
            marked = count > 0 and words.count("<image>") == count
            return _LOADED["reference"].answers(picture, words, count, marked)

    return Trial(
        f"{count} images, {words!r:.300}",
        lambda: llava_answers(_LOADED["engine"], base.picture, words, count),
        right,
        None,
        ("prompt", "text", "image"),
    )


def options(rng: Random, base: Base, scratch: Path) -> Trial:
    """Numbers of how to generate: refused, or the same answer each time."""
    from serve.engines.llava import Engine
    from serve.generation.options import GenerationOptions

    numbers: tuple[Any, ...] = (
        *(0, 1, -1, 2, 0.5, 1e-320, 1e-45, 1e308, -0.0, 2**31, 2**63, 2**64, 10**30),
        *(float("nan"), float("inf"), None, True, "1", [], 0.999999999, 5e-324),
    )
    fields = ("temperature", "top_p", "seed", "keep_factor", "stop", "max_new_tokens", "ignore_eos")
    chosen = {name: rng.choice(numbers) for name in rng.sample(fields, rng.randrange(1, 4))}

    def product() -> Any:
        if "compressed" not in _LOADED:
            _LOADED["compressed"] = Engine.load(base.of("llava") / "onnx", device="cpu", threads=1)
        sampling = GenerationOptions(**{"max_new_tokens": 4, **chosen})
        done = _LOADED["compressed"].generate([base.picture], QUESTIONS[0], sampling)
        return done.token_ids

    def right() -> Any:
        try:
            return product()
        except CompExportError:
            return "refused the second time"

    return Trial(repr(chosen), product, right, None, (*fields, "options", "prompt"))
