"""Format the first links for reports."""

from typing import Any

SHOWN = 5  # requests listed per kind


def rows_of(links: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """One row a link: name, whether it holds, requests, pixels, outputs, steps with differences."""
    return [
        (
            link["name"],
            "yes" if link["ok"] else "NO",
            f"{link['compared']}/{link['requests']}",
            f"{link['max_pixel_difference']:.1e}",
            _outputs(link),
            ", ".join(f"{step}: {len(of)}" for step, of in link["parted"].items()) or "nowhere",
        )
        for link in links
    ]


COLUMNS = ("first link", "holds", "requests", "pixels", "outputs", "parts at")


def notes_of(links: list[dict[str, Any]]) -> list[str]:
    """Details of the rows: differences, refusals, and models that were not run."""
    notes = []
    for link in links:
        name = link["name"]
        for step, parted in link["parted"].items():
            named = [f"{each['request']}: {each['detail']}" for each in parted[:SHOWN]]
            notes.append(f"{name}: part at {step}: {'; '.join(named)}")
        for request, why in list(link["refused"].items())[:SHOWN]:
            notes.append(f"{name}: {request!r} is refused by one side: {why}")
        if link["both_refused"]:
            notes.append(f"{name}: refused by both sides: {', '.join(link['both_refused'])}")
        if link["tied"]:
            notes.append(f"{name}: answers part at a tie: {', '.join(link['tied'][:SHOWN])}")
        if link["not_run"]:
            notes.append(f"{name}: read, not answered: {link['not_run']}")
    return notes


def markdown_of(links: list[dict[str, Any]]) -> list[str]:
    """The lines of a report's section."""
    if not links:
        return []
    return [
        "## From pictures and words",
        "",
        "The checkpoint in transformers (AutoProcessor and the Auto class) against what users call.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---|---|--:|--:|--:|---|",
        *(f"| {' | '.join(row)} |" for row in rows_of(links)),
        "",
        *(f"- {note}" for note in notes_of(links)),
        "",
    ]


def _outputs(link: dict[str, Any]) -> str:
    if not link["answered"]:
        return "not run"
    worst = link["max_output_difference"]
    return "not finite" if worst is None else f"{worst:.1e}"
