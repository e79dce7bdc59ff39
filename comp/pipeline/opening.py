"""Say at the start of a pruning run what it will do, and about how long its training takes."""

import time

import torch

from comp.adapter import FamilyAdapter, Forwarding
from comp.checkpoints.model_size import size_of
from comp.pipeline.request import PruneRequest
from comp.training.data import PruningData
from comp.utils.compute import Compute
from comp.utils.progress import duration

BACKWARD = (
    3  # a training step takes as long as this many forward passes; a teacher adds one, unless known
)


def opening_of(request: PruneRequest, resumed: bool) -> str:
    """Return the line that says what a run will do."""
    search, recovery = request.search.steps, request.recover.steps
    of = {"flops": "FLOPs", "latency": "predicted time"}[request.search.rate_of]
    return (
        f"prune: {'resuming ' if resumed else ''}{request.model}, {request.search.rate:.0%} of its {of} "
        f"by {request.method}: a search with up to {search} training steps, then {recovery} of recovery"
    )


def training_seconds(
    request: PruneRequest,
    adapter: FamilyAdapter,
    data: PruningData,
    compute: Compute,
    parameters: int,
) -> float | None:
    """Estimate the seconds of all training steps from two forward passes of the dense model.

    The batch is one of those to calibrate on.

    Args:
        parameters: number of parameters of the dense model.

    Returns:
        ``None`` if nothing is trained, or if the passes themselves would take long.
    """
    steps = request.search.steps + request.recover.steps
    slow = request.stream or (size_of(parameters) == "large" and compute.device.type == "cpu")
    if not steps or slow:
        return None
    batch = data.calibration[0]
    taken = []
    with torch.no_grad(), compute.autocast():
        for _ in range(2):
            began = time.perf_counter()
            float(adapter.score(batch, Forwarding()).loss)  # waits for a GPU
            taken.append(time.perf_counter() - began)
    passes = BACKWARD * steps
    if request.distill.what != "none":
        taught = request.recover.batches_of(len(data.train)) or request.recover.steps
        passes += request.search.steps + min(taught, request.recover.steps)
    batches = compute.shard_size(request.recover.training.batch_size) / adapter.rows(batch)
    return passes * batches * min(taken)


def estimate_words(seconds: float | None) -> str:
    """``about 10 min of training at the present speed``; empty if unknown."""
    return "" if seconds is None else f"about {duration(seconds)} of training at the present speed"
