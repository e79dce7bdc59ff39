"""Print results in the terminal: streamed text, times and kept tokens."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from comp.utils.console import print_json, print_table, say
from serve.engines.blip_judge import Judgement
from serve.engines.retriever import Ranking
from serve.generation.results import Event, Finished, Generation, TokenText


def print_answer(events: Iterator[Event], origin: dict[str, Any], as_json: bool) -> None:
    """Stream the answer to stdout and print its times to stderr, or print one JSON object."""
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


def print_ranking(
    ranking: Ranking,
    images: Sequence[Path],
    texts: Sequence[str],
    origin: dict[str, Any],
    as_json: bool,
) -> None:
    """Print a table for each image and the times, or one JSON object."""
    if as_json:
        print_json(
            {
                "images": [str(image) for image in images],
                "texts": list(texts),
                "scores": ranking.of_texts.tolist(),
                "probabilities": [
                    ranking.probabilities(number).tolist() for number in range(len(images))
                ],
                "best_text": ranking.of_texts.argmax(1).tolist(),
                "best_image": ranking.of_images.argmax(1).tolist(),
                "total_ms": ranking.timings.total_ms,
                "kept": ranking.kept.to_dict(),
                **origin,
            }
        )
        return
    for number, image in enumerate(images):
        shares = ranking.probabilities(number)
        rows = [
            (texts[place], f"{ranking.of_texts[number, place]:.2f}", f"{shares[place]:.1%}")
            for place in ranking.of_texts[number].argsort(kind="stable")[::-1]
        ]
        print_table(str(image), ("text", "score", "probability"), rows)
    times = ranking.timings
    say(f"images {times.vision_ms:.1f} ms · texts {times.prefill_ms:.1f} ms")
    for line in ranking.kept.lines():
        say(line)


def print_judgement(judgement: Judgement, origin: dict[str, Any], as_json: bool) -> None:
    """Print true or false with its probability and the times, or one JSON object."""
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
