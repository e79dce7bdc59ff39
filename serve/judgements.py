"""A judgement in the terminal."""

from typing import Any

import click

from comp.utils.console import print_json, say
from serve.encoder.judge import Judgement


def print_judgement(judgement: Judgement, origin: dict[str, Any], as_json: bool) -> None:
    """Print true or false with its probability and the time it took, or one JSON object."""
    if as_json:
        print_json(
            {
                "verdict": judgement.verdict,
                "probability": judgement.probability,
                "total_ms": judgement.timings.total_ms,
                "kept": judgement.kept.to_dict(),
                **origin,
            }
        )
        return
    sure = judgement.probability if judgement.verdict else 1 - judgement.probability
    click.echo(f"{str(judgement.verdict).lower()} ({sure:.1%})")
    times = judgement.timings
    say(f"images {times.vision_ms:.1f} ms · statement {times.prefill_ms:.1f} ms")
    for line in judgement.kept.lines():
        say(line)
