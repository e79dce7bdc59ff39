"""Multiply-accumulates of a CLIP or a BLIP that drops tokens, with what ranking and merging them takes.

Attention is there anyway, so reading ranks off it counts nothing; products of matrices count: cosines of
all pairs of tokens, responses to a dictionary, and the shares that make tokens left of those that came.
"""

from comp.checkpoints.encoder_shape import EncoderShape, TextShape, TowerShape
from comp.flops.encoder import images_of, request_macs, tokens_by_block
from comp.plan import DropPlan, Part, Workload

DICTIONARY_SIZE = 100  # entries
SIMILAR = ("similar", "proportional")  # merges that compare tokens


def dropped_macs(shape: EncoderShape, on: Workload, drops: tuple[DropPlan, ...]) -> dict[str, int]:
    """One request of a model with these drops, by part."""
    found = request_macs(shape, on, {drop.place: drop.keep_ratio for drop in drops})
    images = images_of(shape.task)
    seen = on.image_tokens // images
    found["vision"] += images * _chosen(shape, shape.vision, "vision", seen, drops)
    read = _chosen(shape, shape.text, "language", on.text_tokens, drops)
    found["language"] += read
    if "matching" in found:
        found["matching"] += read
    return found


def _chosen(
    shape: EncoderShape,
    sizes: TowerShape | TextShape,
    part: Part,
    count: int,
    drops: tuple[DropPlan, ...],
) -> int:
    """What ranking and merging take in one pass of a part that ``count`` tokens enter."""
    here = {drop.after_layer: drop for drop in drops if drop.part == part}
    ratios = {number: drop.keep_ratio for number, drop in here.items()}
    seen = tokens_by_block(len(sizes.blocks), count, ratios)
    total = 0
    for number, (came, left) in enumerate(seen, start=1):
        if number not in here:
            continue
        drop, hidden = here[number], sizes.hidden_size
        width = sizes.blocks[number - 1].heads * sizes.head_dim
        if drop.ranking in ("informativity", "matched") or drop.merge in SIMILAR:
            total += came * came * width
        if drop.ranking == "matched":
            total += came * width
        if drop.ranking == "aligned":
            common = min(shape.vision.hidden_size, shape.text.hidden_size)
            total += came * common * (DICTIONARY_SIZE + (hidden if hidden != common else 0))
        if drop.merge != "none":
            total += left * came * hidden
    return total
