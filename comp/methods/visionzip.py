"""VisionZip: keep the dominant image tokens before the projector, and merge the others into a few.

Paper: Yang et al., "VisionZip: Longer is Better but Not Necessary in Vision Language Models" (CVPR 2025).

Steps: solve for the number of tokens an image that meets the rate, then measure once
(``comp.tokens.image_selection`` selects and merges). Nothing is trained.

Prunes the image tokens of a LLaVA, after its vision tower. No options of its own.
"""

from comp.checkpoints.llava_shape import ModelShape
from comp.errors import CompExportError
from comp.families.llava.adapter import LlavaAdapter
from comp.flops.llava import llava_macs
from comp.masks import whole_blocks
from comp.methods.common.decoder_tokens import MODE, TOLERANCE
from comp.methods.common.stages import measured_at_once
from comp.plan import ImageSelection, Place, Workload
from comp.search.final_plan import plan_of
from comp.search.job import Outcome, PruningJob, agreed_workload

METHOD = "visionzip"
# 10 of 64 tokens are contextual; the original has 54 + 10, 108 + 20 and 162 + 30 tokens.
CONTEXTUAL = (10, 64)


def prune(job: PruningJob) -> Outcome:
    """Solve for the number of tokens left of an image; see ``comp.registry.methods.Method.load``."""
    adapter = job.adapter
    assert isinstance(adapter, LlavaAdapter)  # as the registry says
    shape, workload = adapter.shape, agreed_workload(job)
    selection = solved(shape, workload, job.options.rate)
    macs = macs_of(shape, workload), macs_of(shape, workload, selection)
    blocks = whole_blocks(adapter.blocks)
    plan = plan_of(adapter, workload, macs, job.model_name, METHOD, blocks, ())
    plan = plan.model_copy(update={"image_selection": selection})
    share = selection.count / selection.tower_tokens
    place: Place = ("vision", shape.vision_used_layers)
    pruned = adapter.selecting(selection)
    return measured_at_once(job, plan, MODE, {place: (share, 1.0)}, pruned)


def selection_of(tower_tokens: int, count: int) -> ImageSelection:
    """Return the selection of ``count`` tokens of an image, about 5.4 dominant ones per contextual one."""
    part, of = CONTEXTUAL
    contextual = round(count * part / of)
    return ImageSelection(
        tower_tokens=tower_tokens, dominant=count - contextual, contextual=contextual
    )


def macs_of(shape: ModelShape, on: Workload, selection: ImageSelection | None = None) -> int:
    """Multiply-accumulates of a prompt with this selection from each image."""
    return llava_macs(shape.selecting(selection), on.image_tokens, on.text_tokens).macs


def solved(shape: ModelShape, on: Workload, rate: float) -> ImageSelection:
    """Return the selection whose rate is nearest to ``rate``: within half of the cost of one token.

    Raises:
        CompExportError: dropping image tokens cannot reach the rate.
    """
    dense = macs_of(shape, on)
    tried = {
        count: macs_of(shape, on, selection_of(shape.tower_tokens, count))
        for count in range(1, shape.tower_tokens + 1)
    }
    largest = 1 - tried[1] / dense
    if rate > largest + TOLERANCE:
        raise CompExportError(
            f"rate {rate:g} is beyond what dropping image tokens after the vision tower can reach on "
            f"this model: at most {largest:.2f}; choose a smaller --rate, or a --method that also removes "
            "parameters"
        )
    best = min(tried, key=lambda count: abs(tried[count] - (1 - rate) * dense))
    return selection_of(shape.tower_tokens, best)
