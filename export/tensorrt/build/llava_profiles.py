"""The engines of a LLaVA: vision encoder, token embedding, and the decoder with caches in place."""

from comp.errors import CompExportError
from comp.plan import KEEP_UNIT
from export.artifact.caches import cached_tokens
from export.artifact.llava_manifest import IN_PLACE, LlavaManifest
from export.tensorrt.build.profiles import EngineGraph, Profile, Range
from export.tensorrt.limits import Limits
from export.tensorrt.names import DECODE, DECODER, EMBED, PREFILL, VISION

LARGEST_TOPK = 3840  # TensorRT's limit of k
ALIGNMENT = 8  # places in a cache: whole vectors of half precision


def cache_capacities(manifest: LlavaManifest, limits: Limits) -> tuple[int, ...]:
    """Places in the caches of each segment of the decoder, for the largest request."""
    image_tokens = limits.images * manifest.vision.image_tokens
    filled = cached_tokens(manifest.decoder, image_tokens, limits.max_prompt)
    return tuple(-(-(count + limits.max_new_tokens) // ALIGNMENT) * ALIGNMENT for count in filled)


def usual_limits(manifest: LlavaManifest) -> Limits:
    """The default limits of engines."""
    del manifest
    return Limits()


def longest_step(manifest: LlavaManifest) -> int:
    """The smallest number of text tokens of which every drop keeps two.

    A decode step has one token, but TensorRT-RTX 1.7 finds no fused attention after a drop if the
    number of queries is the constant 1: the step's profile goes up to this number.
    """
    count = 2
    for drop in reversed(manifest.decoder.drops):
        count = (count - 1) * KEEP_UNIT // round(drop.text_keep_ratio * KEEP_UNIT) + 1
    return min(count, LARGEST_TOPK)


def engine_graphs(manifest: LlavaManifest, limits: Limits) -> tuple[EngineGraph, ...]:
    """The graphs of a LLaVA to build, with their profiles.

    The decoder has two profiles on one set of weights: a prefill, and a decode step of one text token.

    Raises:
        CompExportError: the limits exceed the model's positions, or what TensorRT can sort.
    """
    image_tokens = limits.images * manifest.vision.image_tokens
    longest = image_tokens + limits.max_prompt
    room = manifest.decoder.max_position_embeddings
    if longest + limits.max_new_tokens > room:
        raise CompExportError(
            f"--images {limits.images} ({image_tokens} tokens), --max-prompt {limits.max_prompt} and "
            f"--max-new-tokens {limits.max_new_tokens} are {longest + limits.max_new_tokens} tokens, "
            f"the model has {room} positions: lower one of them"
        )
    kept = cached_tokens(manifest.decoder, image_tokens, limits.max_prompt)[1:]
    if kept and max(kept) > LARGEST_TOPK:
        raise CompExportError(
            f"--images {limits.images} and --max-prompt {limits.max_prompt} keep {max(kept)} tokens at "
            f"a drop, TensorRT sorts at most {LARGEST_TOPK}: lower one of them"
        )
    batch = Range(1, 1, limits.max_batch)
    usual_text = -(-limits.max_prompt // 2)
    sequence = Range(1, image_tokens + usual_text, longest)
    images = Range(1, limits.images, limits.images * limits.max_batch)
    prefill = {
        "batch": batch,
        "sequence": sequence,
        "vision_tokens": Range(0, image_tokens, image_tokens),
        "text_tokens": Range(1, usual_text, limits.max_prompt),
    }
    step = Range(1, 1, longest_step(manifest))
    decode = {
        "batch": batch,
        "sequence": step,
        "vision_tokens": Range(0, 0, 0),
        "text_tokens": step,
    }
    capacities = cache_capacities(manifest, limits)
    return (
        EngineGraph(VISION, "vision_encoder.onnx", (Profile(PREFILL, {"images": images}),)),
        EngineGraph(
            EMBED,
            "embed_tokens.onnx",
            (Profile(PREFILL, {"batch": batch, "sequence": sequence}),),
        ),
        EngineGraph(
            DECODER,
            IN_PLACE,
            (Profile(PREFILL, prefill), Profile(DECODE, decode)),
            {f"capacity_{segment}": places for segment, places in enumerate(capacities)},
        ),
    )
