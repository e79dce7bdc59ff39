"""Simple joint pruning, one after the other: first parameters, then tokens, half of the stages each."""

from comp.errors import CompExportError
from comp.methods.sjp import prune_jointly, sequential
from comp.search.job import Outcome, PruningJob

METHOD = "sjp-sequential"


def prune(job: PruningJob) -> Outcome:
    """UPop before PyramidDrop or MADTP; see ``comp.pipeline.steps.method``.

    Raises:
        CompExportError: also for a single stage, which has no halves.
    """
    if job.options.stages < 2:
        raise CompExportError(
            f"--method {METHOD} prunes parameters in one half of the stages and tokens in the other: "
            "give it --stages 2 or more, or choose sjp, which prunes both in every stage"
        )
    return prune_jointly(job, METHOD, sequential)
