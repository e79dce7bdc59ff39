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
    """Return the line that says what a resolved request will do."""
    search, recovery = steps_of(request)
    of = {"flops": "FLOPs", "latency": "predicted time"}[request.search.rate_of]
    return (
        f"prune: {'resuming ' if resumed else ''}{request.model}, {request.search.rate:.0%} of its {of} "
        f"by {request.method}: a search of {request.search.stages} stages{_up_to(search, request)}, then "
        f"{f'{recovery} steps of' if recovery else 'no'} recovery"
    )


def _up_to(steps: int, request: PruneRequest) -> str:
    if not steps:
        return ""
    return f" with {'' if request.method == 'comp' else 'up to '}{steps} training steps"


def steps_of(request: PruneRequest) -> tuple[int, int]:
    """Return the training steps of search and recovery.

    Recovery gets the steps that the search leaves. CoMP's are known; other methods take up to all of the
    search's, which is counted.
    """
    search = request.search.comp_steps if request.method == "comp" else request.search.steps
    return search, request.recover.steps + request.search.steps - search


def training_passes(request: PruneRequest, examples: int) -> float:
    """Return the time of all training steps of a resolved request, in forward passes of the dense model.

    The search trains the dense model; recovery trains one with the share of the FLOPs that the rate leaves.
    A teacher, which is dense, adds one pass for each batch that it has not seen.

    Args:
        request: the request.
        examples: number of training examples.
    """
    search, recovery = steps_of(request)
    left = 1 - request.search.rate if request.search.rate_of == "flops" else 1.0
    passes = BACKWARD * (search + left * recovery)
    if request.distill.what != "none":
        taught = request.recover.batches_of(examples) or recovery
        passes += search + min(taught, recovery)
    return passes


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
    passes = training_passes(request, len(data.train))
    slow = request.stream or (size_of(parameters) == "large" and compute.device.type == "cpu")
    if not passes or slow:
        return None
    batch = data.calibration[0]
    taken = []
    with torch.no_grad(), compute.autocast():
        for _ in range(2):
            began = time.perf_counter()
            float(adapter.score(batch, Forwarding()).loss)  # waits for a GPU
            taken.append(time.perf_counter() - began)
    batches = compute.shard_size(request.recover.training.batch_size) / adapter.rows(batch)
    return passes * batches * min(taken)


def estimate_words(seconds: float | None) -> str:
    """``about 10 min of training at the present speed``; empty if unknown."""
    return "" if seconds is None else f"about {duration(seconds)} of training at the present speed"
