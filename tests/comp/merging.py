"""Plans whose drops rank and merge as the methods do, and in other ways."""

from comp.checkpoints.encoder_shape import packaged_shape
from comp.flops.encoder import request_macs
from comp.flops.token_drops import dropped_macs
from comp.plan import DropPlan, Workload, keep_count

WAYS = [
    ("informativity", "similar"),
    ("aligned", "one"),
    ("received", "similar"),
    ("informativity", "one"),
    ("matched", "similar"),
]
CLIP_WAYS = [*WAYS, ("matched", "proportional"), ("received", "proportional")]


def ways_of(plan, ranking, merge):
    """Return the plan with this ranking and merge at every place."""
    update = {"ranking": ranking, "merge": merge}
    return plan.model_copy(
        update={"drops": tuple(drop.model_copy(update=update) for drop in plan.drops)}
    )


def macs_of_a_way(ranking, merge):
    """Return the MACs of ranking and merging half of CLIP-B/16's 197 image tokens, and the kept number."""
    shape, on = packaged_shape("clip-b16"), Workload(image_tokens=197, text_tokens=20)
    drop = DropPlan(
        part="vision",
        after_layer=3,
        vision_keep_ratio=0.5,
        text_keep_ratio=1,
        ranking=ranking,
        merge=merge,
    )
    plain = request_macs(shape, on, {drop.place: 0.5})
    counted = dropped_macs(shape, on, (drop,))
    assert counted["language"] == plain["language"]
    return counted["vision"] - plain["vision"], keep_count(197, 0.5)
