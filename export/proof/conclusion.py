"""The conclusion of a report of ``verify`` in plain words."""

from typing import Any

SHOWN = 3  # names of links that do not hold


def conclusion_of(report: dict[str, Any]) -> str:
    """Return what holds, what does not, and what was not compared, as sentences."""
    links = [*report["first_links"], *report["links"], *report["weights"]]
    broken = [link["name"] for link in links if not link["ok"]]
    if broken:
        more = f" and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
        result = (
            f"{len(broken)} of {_counted(len(links))} {'do' if len(broken) > 1 else 'does'} NOT hold: "
            f"{', '.join(broken[:SHOWN])}{more}. Do not rely on these artifacts."
        )
    elif links:
        result = (
            f"{'The one link holds' if len(links) == 1 else f'All {len(links)} links hold'}: on "
            f"{_counted(report['questions'], 'example')}, each exported form answers as its torch model does."
        )
    else:
        result = "Nothing was compared."
    left = len(report["skipped"])
    if left:
        was, them = ("was", "it") if left == 1 else ("were", "them")
        return f"{result} {_counted(left)} {was} not compared: nothing is proved about {them}."
    return f"{result} Nothing was left out."


def _counted(number: int, what: str = "link") -> str:
    return f"{number} {what}{'s' * (number != 1)}"
