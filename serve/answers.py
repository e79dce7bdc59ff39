"""An answer in the terminal: text as it comes, then its times and what was kept."""

from collections.abc import Iterator
from typing import Any

import click

from comp.utils.console import print_json, say
from serve.results import Event, Finished, Generation, TokenText


def print_answer(events: Iterator[Event], origin: dict[str, Any], as_json: bool) -> None:
    """Print the answer to stdout as it comes and its times to stderr, or one JSON object."""
    result: Generation | None = None
    for event in events:
        if isinstance(event, TokenText) and not as_json:
            click.echo(event.text, nl=False)
        elif isinstance(event, Finished):
            result = event.generation
            if not as_json:
                click.echo(event.text)
    assert result is not None
    if as_json:
        print_json(
            {
                "text": result.text,
                "ttft_ms": result.ttft_ms,
                "tpot_ms": result.tpot_ms,
                "total_ms": result.total_ms,
                "kept": result.kept.to_dict(),
                "prompt_tokens": result.prompt_tokens,
                "image_tokens": result.image_tokens,
                "token_ids": list(result.token_ids),
                "finish_reason": result.finish_reason,
                **origin,
            }
        )
        return
    say(
        f"{len(result.token_ids)} tokens · first after {result.ttft_ms:.1f} ms · "
        f"{result.tpot_ms:.2f} ms a token · total {result.total_ms:.1f} ms"
    )
    for line in result.kept.lines():
        say(line)
