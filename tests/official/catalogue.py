"""The covered checkpoints with their spellings, the refused ones, and the tables of the docs."""

from tests.official import blip, clip, llava, others

CHECKPOINTS = (*llava.CHECKPOINTS, *blip.CHECKPOINTS, *clip.CHECKPOINTS)
REFUSED = others.REFUSED


def covered() -> str:
    """The table of ``docs/how-to/your-own-model.md``."""
    rows = ["| checkpoint | task | its files |", "|---|---|---|"]
    for official in CHECKPOINTS:
        names = "; ".join(spelling.name for spelling in official.spellings)
        rows.append(f"| `{official.hub_id}` | {official.task} | {names} |")
    return "\n".join(rows)


def refused() -> str:
    """The other table there."""
    rows = ["| checkpoint | why |", "|---|---|"]
    rows += [f"| `{each.hub_id}` | {each.kind} |" for each in REFUSED]
    return "\n".join(rows)
