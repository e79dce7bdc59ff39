"""The engines of a CLIP: one for each tower."""

from export.encoder_manifest import EncoderManifest
from export.engines.limits import Limits
from export.engines.names import ENCODE
from export.engines.profiles import EngineGraph, Profile, Range

SHORTEST = 2  # tokens of a text: its frame
Dims = tuple[int | str, ...]


def cache_capacities(manifest: EncoderManifest, limits: Limits) -> tuple[int, ...]:
    """No graph of a CLIP has caches."""
    del manifest, limits
    return ()


def engine_graphs(manifest: EncoderManifest, limits: Limits) -> tuple[EngineGraph, ...]:
    """What to build: up to ``max_batch`` images, and texts of up to ``max_prompt`` tokens, at a time."""
    profile = Profile(ENCODE, sizes(manifest, limits))
    return tuple(EngineGraph(name, f"{name}.onnx", (profile,)) for name in inputs(manifest))


def inputs(manifest: EncoderManifest) -> dict[str, dict[str, Dims]]:
    """Dimensions of the inputs of each graph."""
    side = manifest.vision.image_size
    return {
        "vision_model": {"pixel_values": ("images", 3, side, side)},
        "text_model": {"input_ids": ("texts", "length")},
    }


def sizes(manifest: EncoderManifest, limits: Limits) -> dict[str, Range]:
    """Sizes that the named dimensions take."""
    longest = min(limits.max_prompt, manifest.text.max_position_embeddings)
    return {
        "images": Range(1, 1, limits.max_batch * limits.images),
        "texts": Range(1, 1, limits.max_batch),
        "length": Range(SHORTEST, (SHORTEST + longest) // 2, longest),
    }
