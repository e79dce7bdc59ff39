"""Names that the builder of engines and their runner share."""

from pathlib import Path

from export.artifact.manifest import Precision

VISION, EMBED, DECODER = "vision_encoder", "embed_tokens", "decoder"  # engines of a LLaVA
PREFILL, DECODE = "prefill", "decode"  # profiles
ENCODE = "encode"  # the one profile of a tower
DEFAULT_PRECISION: Precision = "float16"


def engine_directory(run: Path, dense: bool, precision: Precision) -> Path:
    """``tensorrt`` and ``tensorrt-dense`` in float16; another precision is added to the name."""
    words = ["tensorrt", *(["dense"] if dense else [])]
    if precision != DEFAULT_PRECISION:
        words.append(precision)
    return run / "-".join(words)
