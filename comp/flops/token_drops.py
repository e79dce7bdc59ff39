"""Count multiply-accumulates of a CLIP or a BLIP that drops tokens, including ranking and merging.

Attention is computed anyway, so that ranking by it counts nothing. Matrix products count: cosines of all
pairs of tokens, responses to a dictionary, and the mixing of merged tokens.
"""

from comp.checkpoints.encoder_shape import EncoderShape
from comp.checkpoints.shapes import TextShape, TowerShape
from comp.flops.encoder import request_macs, tokens_by_block
from comp.plan import DropPlan, Part, Workload, images_of

DICTIONARY_SIZE = 100  # entries
SIMILAR = ("similar", "proportional")  # merges that compare tokens


def dropped_macs(shape: EncoderShape, on: Workload, drops: tuple[DropPlan, ...]) -> dict[str, int]:
    """Multiply-accumulates by part of one request of a model with these drops."""
    macs = request_macs(shape, on, {drop.place: drop.keep_ratio for drop in drops})
    images = images_of(shape.task)
    seen = on.image_tokens // images
    macs["vision"] += images * _chosen(shape, shape.vision, "vision", seen, drops)
    read = _chosen(shape, shape.text, "language", on.text_tokens, drops)
    macs["language"] += read
    if "matching" in macs:
        macs["matching"] += read
    return macs


def _chosen(
    shape: EncoderShape,
    sizes: TowerShape | TextShape,
    part: Part,
    count: int,
    drops: tuple[DropPlan, ...],
) -> int:
    """Multiply-accumulates of ranking and merging in one pass of a part that ``count`` tokens enter."""
    drop_after = {drop.after_layer: drop for drop in drops if drop.part == part}
    ratios = {number: drop.keep_ratio for number, drop in drop_after.items()}
    seen = tokens_by_block(len(sizes.blocks), count, ratios)
    total = 0
    for number, (entering, left) in enumerate(seen, start=1):
        if number not in drop_after:
            continue
        drop, hidden = drop_after[number], sizes.hidden_size
        width = sizes.blocks[number - 1].heads * sizes.head_dim
        if drop.ranking in ("informativity", "matched") or drop.merge in SIMILAR:
            total += entering * entering * width
        if drop.ranking == "matched":
            total += entering * width
        if drop.ranking == "aligned":
            common = min(shape.vision.hidden_size, shape.text.hidden_size)
            total += entering * common * (DICTIONARY_SIZE + (hidden if hidden != common else 0))
        if drop.merge != "none":
            total += left * entering * hidden
    return total
