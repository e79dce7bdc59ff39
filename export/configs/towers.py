"""What the configurations of CLIP and BLIP have in common for their graphs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from comp.errors import CompExportError

ACTIVATIONS = ("gelu", "quick_gelu", "gelu_pytorch_tanh", "silu", "relu")


@dataclass(frozen=True)
class TowerSettings:
    """Activation and epsilon of one tower."""

    act: str
    layer_norm_eps: float


def tower_settings(
    config: Mapping[str, Any], part: str, where: str, act: str, epsilon: float
) -> TowerSettings:
    """Those of ``config[part]``; ``act`` and ``epsilon`` are what transformers has for left-out ones.

    Raises:
        CompExportError: an activation that the graphs do not have.
    """
    values = config.get(part) or {}
    found = values.get("hidden_act") or act
    if found not in ACTIVATIONS:
        raise CompExportError(
            f"{where}: {part}.hidden_act is {found!r}: supported are {', '.join(ACTIVATIONS)}"
        )
    return TowerSettings(found, values.get("layer_norm_eps") or epsilon)
