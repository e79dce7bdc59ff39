"""The engines of a CLIP and of BLIP's tasks: one for each graph.

A decoder has two profiles on one set of weights, a prefill and a decode step; its caches grow, and every
step has one place more of them.
"""

from comp.errors import CompExportError
from export.artifact.encoder_manifest import EncoderManifest, tokens_left
from export.artifact.encoder_ports import DECODER_MODEL, encoder_inputs, images_of
from export.tensorrt.build.profiles import EngineGraph, Profile, Range
from export.tensorrt.limits import Limits
from export.tensorrt.names import DECODE, ENCODE, PREFILL

SHORTEST = 2  # tokens of a text: its frame
# TensorRT-RTX 1.7 finds no fused attention where the queries are the constant 1, nor of a single head
# where the batch is: both go up to two.
STEP = Range(1, 1, 2)


def cache_capacities(manifest: EncoderManifest, limits: Limits) -> tuple[int, ...]:
    """Return nothing: no cache has a fixed size."""
    del manifest, limits
    return ()


def usual_limits(manifest: EncoderManifest) -> Limits:
    """The default limits of engines."""
    return within(manifest, Limits())


def within(manifest: EncoderManifest, limits: Limits) -> Limits:
    """Restrict limits to the model's positions and its task's number of images."""
    positions = _positions(manifest)
    return Limits(
        max_batch=limits.max_batch,
        images=images_of(manifest) or limits.images,
        max_prompt=min(limits.max_prompt, positions),
        max_new_tokens=min(limits.max_new_tokens, positions),
    )


def engine_graphs(manifest: EncoderManifest, limits: Limits) -> tuple[EngineGraph, ...]:
    """The graphs to build, with profiles for requests up to ``limits``.

    Raises:
        CompExportError: the limits exceed the model's positions, or its task takes another number of images.
    """
    _check(manifest, limits)
    ranges = sizes(manifest, limits)
    once = (Profile(ENCODE, ranges),)
    phases = {DECODER_MODEL: _phases(manifest, limits, ranges)} if manifest.decoder else {}
    return tuple(
        EngineGraph(name, f"{name}.onnx", phases.get(name, once))
        for name in encoder_inputs(manifest)
    )


def sizes(manifest: EncoderManifest, limits: Limits) -> dict[str, Range]:
    """Sizes of the named dimensions; for a decoder over all its phases."""
    longest = limits.max_prompt
    each = images_of(manifest) or 1
    batch = Range(1, 1, max(limits.max_batch, 2))
    first, past = _first(manifest, limits), _past(manifest, limits)
    return {
        "images": Range(1, each, limits.max_batch * limits.images),
        "texts": batch,
        "batch": batch,
        "length": _between(min(SHORTEST, longest), longest),
        "cross_tokens": _between(_read(manifest, min(SHORTEST, longest)), _read(manifest, longest)),
        "sequence": Range(1, 1, max(first, STEP.high)),
        "past": Range(0, past.usual, past.high),
    }


def _phases(
    manifest: EncoderManifest, limits: Limits, ranges: dict[str, Range]
) -> tuple[Profile, Profile]:
    none, past = Range(0, 0, 0), _past(manifest, limits)
    return (
        Profile(PREFILL, ranges | {"past": none}),
        Profile(DECODE, ranges | {"sequence": STEP, "past": past}),
    )


def _first(manifest: EncoderManifest, limits: Limits) -> int:
    """Tokens that a decoder reads before its first output: a caption's beginning, or the start token."""
    return limits.max_prompt if manifest.task == "caption" else 1


def _past(manifest: EncoderManifest, limits: Limits) -> Range:
    """Tokens before a decode step; two more, the largest step, must have positions."""
    longest = min(_first(manifest, limits) + limits.max_new_tokens, _positions(manifest))
    return _between(1, max(longest - STEP.high, 1))


def _between(low: int, high: int) -> Range:
    return Range(low, (low + high) // 2, high)


def _read(manifest: EncoderManifest, length: int) -> int:
    """Tokens of a text that remain after its encoder."""
    return tokens_left(length, "language", manifest.drops)


def _positions(manifest: EncoderManifest) -> int:
    """Tokens of the longest text, as input or output."""
    decoder = manifest.decoder
    read = manifest.text.max_position_embeddings
    return min(read, decoder.max_position_embeddings) if decoder else read


def _check(manifest: EncoderManifest, limits: Limits) -> None:
    """Refuse limits that no request could reach."""
    images, positions = images_of(manifest), _positions(manifest)
    if images is not None and limits.images != images:
        raise CompExportError(
            f"--images {limits.images}: a {manifest.task} is about {images}: leave it out"
        )
    for option, value in (
        ("--max-prompt", limits.max_prompt),
        *([("--max-new-tokens", limits.max_new_tokens)] if manifest.decoder else []),
    ):
        if value > positions:
            raise CompExportError(
                f"{option} {value}: the model has {positions} positions: lower it to {positions}"
            )
