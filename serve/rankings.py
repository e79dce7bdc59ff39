"""A ranking in the terminal: the texts of each image, best first."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comp.utils.console import print_json, print_table, say
from serve.encoder.retriever import Ranking


def print_ranking(
    ranking: Ranking,
    images: Sequence[Path],
    texts: Sequence[str],
    origin: dict[str, Any],
    as_json: bool,
) -> None:
    """Print a table for each image and the time it took, or one JSON object."""
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
