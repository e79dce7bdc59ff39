"""Refuse results that are not finite: an artifact that computes NaN or infinity gives no answer."""

import numpy as np
from numpy.typing import NDArray

from comp.errors import CompExportError
from export.artifact.manifest import Precision, computed_in

FLOAT16_MOST = 65504  # the largest number of float16
_REMEDIES: dict[str, str] = {
    "float16": f"float16 ends at {FLOAT16_MOST}, and activations of this model go beyond it: export with "
    "--precision float32, or for OpenVINO and TensorRT with --flavour standard --precision bfloat16",
    "bfloat16": "this model's activations, or its weights, are beyond what bfloat16 holds: export with "
    "--precision float32, and compare it with `comp-export verify`",
    "float32": "the checkpoint may hold weights that are no numbers: look with `comp-export verify`, and "
    "take the original checkpoint again",
}


def check_finite(values: NDArray[np.floating], what: str, precision: Precision) -> None:
    """Refuse numbers that are NaN or infinite.

    Args:
        values: numbers of any shape; read once.
        what: describes the values, in the plural.
        precision: precision of the artifact that computed them.

    Raises:
        CompExportError: names the precision and one that can represent the values.
    """
    if np.isfinite(values).all():
        return
    remedy = _REMEDIES[computed_in(precision)]
    raise CompExportError(f"{what} are not finite numbers (--precision {precision}): {remedy}")


def check_unit_length(embeds: NDArray[np.floating], what: str, precision: Precision) -> None:
    """Refuse embeddings ``[N, P]`` that cannot be normalised: not finite, or of length zero.

    Raises:
        CompExportError: as for ``check_finite``; or names the first that is all zeros.
    """
    check_finite(embeds, f"the embeddings of the {what}s", precision)
    empty = np.flatnonzero(~np.any(embeds, axis=1))
    if empty.size:
        raise CompExportError(
            f"the embedding of {what} {empty[0] + 1} is zero, so that it is like nothing: the checkpoint is "
            "damaged, or --precision float16 is too coarse for it; look with `comp-export verify`"
        )
