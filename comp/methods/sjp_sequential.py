"""Simple joint pruning in sequence: parameters in the first half of the stages, tokens in the second.

As ``sjp``, with the same parts, split and options, but needs at least two stages.
"""

from comp.errors import CompExportError
from comp.methods.sjp import prune_jointly, sequential
from comp.search.job import Outcome, PruningJob

METHOD = "sjp-sequential"


def prune(job: PruningJob) -> Outcome:
    """Run UPop, then PyramidDrop or MADTP; see ``comp.registry.methods.Method.load``.

    Raises:
        CompExportError: also for fewer than two stages.
    """
    if job.options.stages < 2:
        raise CompExportError(
            f"--method {METHOD} prunes parameters in one half of the stages and tokens in the other: "
            "give it --stages 2 or more, or choose sjp, which prunes both in every stage"
        )
    return prune_jointly(job, METHOD, sequential)
