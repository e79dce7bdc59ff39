"""Input shapes of ONNX graphs for the providers that compile with TensorRT.

Without them a provider compiles again whenever a cache grows beyond the shapes it has seen.
"""

from pathlib import Path

from export.artifact.caches import cached_tokens
from export.artifact.encoder_manifest import EncoderManifest
from export.artifact.encoder_ports import encoder_inputs
from export.artifact.llava_manifest import LlavaManifest
from export.artifact.llava_ports import llava_inputs
from export.artifact.manifest import Manifest
from export.tensorrt.build import encoder_profiles as encoder
from export.tensorrt.build.profiles import Profile, Range
from export.tensorrt.limits import Limits

LIMITS = Limits(max_batch=16, images=1, max_prompt=256, max_new_tokens=256)


def profile_options(manifest: Manifest, graph: str, prefix: str) -> dict[str, str]:
    """A provider's options ``{prefix}_min_shapes``, ``_opt_shapes`` and ``_max_shapes``.

    Args:
        manifest: manifest of the artifact.
        graph: file name of the graph.
        prefix: ``trt_profile`` or ``nv_profile``.
    """
    if isinstance(manifest, EncoderManifest):
        inputs = encoder_inputs(manifest)[Path(graph).stem]
        sizes = encoder.sizes(manifest, encoder.within(manifest, LIMITS))
    else:
        assert isinstance(manifest, LlavaManifest)
        inputs, sizes = llava_inputs(manifest)[graph], _sizes(manifest)
    profile = Profile("requests", sizes)
    shapes = {name: profile.shapes(dims) for name, dims in inputs.items()}
    return {
        f"{prefix}_{which}_shapes": ",".join(
            f"{name}:{'x'.join(map(str, ranges[place]))}" for name, ranges in shapes.items()
        )
        for place, which in enumerate(("min", "opt", "max"))
    }


def _sizes(manifest: LlavaManifest) -> dict[str, Range]:
    image_tokens = LIMITS.images * manifest.vision.image_tokens
    longest = image_tokens + LIMITS.max_prompt
    filled = cached_tokens(manifest.decoder, image_tokens, LIMITS.max_prompt)
    pasts = {
        f"past_{segment}": Range(0, count, count + LIMITS.max_new_tokens)
        for segment, count in enumerate(filled)
    }
    return {
        "images": Range(1, 1, LIMITS.max_batch * LIMITS.images),
        "batch": Range(1, 1, LIMITS.max_batch),
        "sequence": Range(1, longest, longest),
        "vision_tokens": Range(0, image_tokens, image_tokens),
        "text_tokens": Range(1, LIMITS.max_prompt, LIMITS.max_prompt),
    } | pasts
