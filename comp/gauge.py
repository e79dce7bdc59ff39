"""What the cost of a stage is measured by (Eq. 8): the validation metric, or the loss of a few examples.

A pass over the whole validation set after every stage is what CoMP's authors name as its limitation. The
loss moves with every logit, the metric only where an answer flips: so a small fixed subset is enough for
the loss to tell modes apart. The metric is then measured for the dense model and at the end alone.
"""

from dataclasses import dataclass, replace

from comp.adapter import Forwarding
from comp.search.job import Job
from comp.training.trainer import accuracy, mean_loss


@dataclass(frozen=True)
class Reading:
    """A measured model.

    Attributes:
        quality: higher is better; what Eq. 8 compares: the metric, or minus the loss in nats.
        metric: on the whole validation set; none where that was not measured.
        loss: on the examples that ``quality`` was measured on.
    """

    quality: float
    metric: float | None
    loss: float


def gauged(job: Job, how: Forwarding, at_an_end: bool) -> Reading:
    """Measure the job's model; at the start and at the end of a search its metric in any case."""
    data, compute = job.data, job.compute
    batches = data.validation if data.cost is None else data.cost
    with compute.timed("cost"):
        if job.options.strategy.cost_metric == "loss":
            loss = mean_loss(job.adapter, batches, how, compute)
            reading = Reading(-loss, None, loss)
        else:
            metric, loss = accuracy(job.adapter, batches, how, compute)
            reading = Reading(metric, metric if data.cost is None else None, loss)
    if reading.metric is None and at_an_end:
        metric, _ = accuracy(job.adapter, data.validation, how, compute)
        return replace(reading, metric=metric)
    return reading
