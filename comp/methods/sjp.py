"""Simple joint pruning: parameters and tokens advance in every stage, neither knowing of the other."""

from comp.joint_pruning import prune_jointly, simultaneous
from comp.search.job import Job, Outcome

METHOD = "sjp"


def prune(job: Job) -> Outcome:
    """UPop beside PyramidDrop or MADTP; see ``comp.search.job.method``."""
    return prune_jointly(job, METHOD, simultaneous)
