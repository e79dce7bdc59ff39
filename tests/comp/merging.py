"""Plans whose drops rank and merge as methods do, and in other ways than that."""

WAYS = [
    ("informativity", "similar"),
    ("aligned", "one"),
    ("received", "similar"),
    ("informativity", "one"),
    ("matched", "similar"),
]
CLIP_WAYS = [*WAYS, ("matched", "proportional"), ("received", "proportional")]


def ways_of(plan, ranking, merge):
    """The plan, its tokens ranked and merged so at every place."""
    update = {"ranking": ranking, "merge": merge}
    return plan.model_copy(
        update={"drops": tuple(drop.model_copy(update=update) for drop in plan.drops)}
    )
