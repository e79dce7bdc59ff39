"""Names that building and running engines share."""

from pathlib import Path

from export.artifact.manifest import Precision

VISION, EMBED, DECODER = "vision_encoder", "embed_tokens", "decoder"  # engines of a LLaVA
PREFILL, DECODE = "prefill", "decode"  # profiles
ENCODE = "encode"  # the one profile of a tower
DEFAULT_PRECISION: Precision = "float16"


def engine_directory(run: Path, dense: bool, precision: Precision) -> Path:
    """A run's engine directory: ``tensorrt``, ``tensorrt-dense``; precisions but float16 are appended."""
    words = ["tensorrt", *(["dense"] if dense else [])]
    if precision != DEFAULT_PRECISION:
        words.append(precision)
    return run / "-".join(words)
