"""Save and load the state of a search, after every stage: an interruption loses at most one stage."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from comp.adapter import FamilyAdapter
from comp.errors import CompExportError
from comp.families.streamed import streamed_layers
from comp.importance.parameters import Scales
from comp.masks import BlockKey, Masks, name_of
from comp.plan import Part, Place
from comp.search.stage import SearchState, Thresholds
from comp.search.strategy import ModeCost, stage_cost
from comp.utils.disk import bytes_of
from comp.utils.files import write_text, writing

STATE, STAGES = "search.json", "stages.jsonl"


@dataclass(frozen=True)
class SavedSearch:
    """A search between two stages.

    Attributes:
        metric: last measured metric on the whole validation set.
        quality: the value that the next stage's cost compares with; ``None``: the metric.
    """

    state: SearchState
    stage: int
    metric: float
    dense_metric: float
    costs: dict[str, ModeCost]
    exhausted: tuple[str, ...]
    quality: float | None = None


def save_search(
    folder: Path, adapter: FamilyAdapter, saved: SavedSearch, line: dict[str, Any]
) -> None:
    """Write weights, then the state that names them, then the line of ``stages.jsonl``."""
    weights = f"stage-{saved.stage}.safetensors"
    tensors = trainable(adapter)
    with writing(folder / weights, bytes_of(tensors)) as temporary:
        save_file(tensors, temporary)
    write_stages(folder, [*read_lines(folder, saved.stage - 1), line])
    record = {
        "stage": saved.stage,
        "metric": saved.metric,
        "dense_metric": saved.dense_metric,
        "costs": {name: asdict(cost) for name, cost in saved.costs.items()},
        "exhausted": saved.exhausted,
        "quality": saved.quality,
        "thresholds": asdict(saved.state.thresholds),
        "shares": {name_of(place): share for place, share in saved.state.shares.items()},
        "heads": _mask_lists(saved.state.masks.heads),
        "channels": _mask_lists(saved.state.masks.channels),
        "scales": {
            kind: {name_of(key): scale for key, scale in scales.items()}
            for kind, scales in asdict(saved.state.scales).items()
        },
        "weights": weights,
    }
    write_text(folder / STATE, json.dumps(record))
    for old in folder.glob("stage-*.safetensors"):
        if old.name != weights:
            old.unlink()


def stage_line(
    stage: int,
    mode: str,
    macs: tuple[int, int, int],
    measured: tuple[float, float, float],
    shares: Mapping[Place, tuple[float, float]] | None = None,
) -> dict[str, Any]:
    """Line of ``stages.jsonl`` for a stage of a method that chooses no mode and raises no threshold.

    Args:
        stage: number of the stage, from 1.
        mode: names of the modes that it advanced.
        macs: MACs of the dense model, before the stage, and after it.
        measured: the validation metric before the stage, the metric and the loss after it.
        shares: shares of vision and text tokens kept after it, by place.
    """
    (dense, before_stage, left), (before, metric, loss) = macs, measured
    cost = stage_cost(before, metric, (before_stage - left) / dense) if before_stage > left else 0.0
    return {
        "stage": stage,
        "mode": mode,
        "explored": False,
        "macs": left,
        "rate": 1 - left / dense,
        "metric": metric,
        "validation_loss": loss,
        "cost": cost,
        "costs": {mode: cost},
        "thresholds": asdict(Thresholds()),
        "keep_ratios": {name_of(place): list(pair) for place, pair in (shares or {}).items()},
    }


def load_search(folder: Path, adapter: FamilyAdapter, modes: tuple[str, ...]) -> SavedSearch | None:
    """Load a state and its weights into the adapter; ``None`` if there is none yet.

    Raises:
        CompExportError: the search was started with other modes.
    """
    path = folder / STATE
    if not path.exists():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    if set(record["costs"]) != set(modes):
        raise CompExportError(
            f"{folder} was started with modes {', '.join(record['costs'])}: resume with the same ones, "
            "or start again with --force"
        )
    fill_trainable(adapter, load_file(folder / record["weights"]))
    masks = Masks(_masks(record["heads"]), _masks(record["channels"]))
    shares = {_key(name): tuple(share) for name, share in record["shares"].items()}
    scales = {
        kind: {_key(name): (mean, deviation) for name, (mean, deviation) in named.items()}
        for kind, named in record["scales"].items()
    }
    state = SearchState(masks, Thresholds(**record["thresholds"]), shares, Scales(**scales))
    return SavedSearch(
        state,
        record["stage"],
        record["metric"],
        record["dense_metric"],
        {name: ModeCost(**cost) for name, cost in record["costs"].items()},
        tuple(record["exhausted"]),
        record["quality"],
    )


def trainable(adapter: FamilyAdapter) -> dict[str, Tensor]:
    """Trainable weights by name; of a streamed model the changed matrices."""
    changed = {
        f"{name}.weight": layer.changed
        for name, layer in streamed_layers(adapter.model).items()
        if layer.changed is not None
    }
    return changed | {
        name: parameter.detach().contiguous()
        for name, parameter in adapter.model.named_parameters()
        if parameter.requires_grad
    }


def fill_trainable(adapter: FamilyAdapter, tensors: Mapping[str, Tensor]) -> None:
    """Load the tensors of ``trainable`` into the adapter."""
    parameters = dict(adapter.model.named_parameters())
    streamed = streamed_layers(adapter.model)
    with torch.no_grad():
        for name, tensor in tensors.items():
            if name in parameters:
                parameters[name].copy_(tensor)
            else:
                streamed[name.removesuffix(".weight")].change(tensor)


def write_stages(folder: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Write ``stages.jsonl``, one line a stage."""
    write_text(folder / STAGES, "".join(json.dumps(line) + "\n" for line in lines))


def read_lines(folder: Path, count: int) -> list[dict[str, Any]]:
    """First ``count`` lines of ``stages.jsonl``; empty if it is not written yet."""
    path = folder / STAGES
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()][:count]


def _mask_lists(masks: dict[BlockKey, Tensor]) -> dict[str, list[int]]:
    """Length of each mask and the indices that are left, by block."""
    return {
        name_of(key): [len(mask), *mask.nonzero()[:, 0].tolist()] for key, mask in masks.items()
    }


def _masks(lists: dict[str, list[int]]) -> dict[BlockKey, Tensor]:
    masks: dict[BlockKey, Tensor] = {}
    for name, (size, *left) in lists.items():
        mask = torch.zeros(size)
        mask[left] = 1
        masks[_key(name)] = mask
    return masks


def _key(name: str) -> BlockKey:
    part, _, number = name.rpartition(".")
    return cast(Part, part), int(number)
