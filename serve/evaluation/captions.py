"""Evaluate captions: objects that are named correctly, and CIDEr-D."""

from collections.abc import Callable

from comp.data.emoji_scenes.captions import names_in, things_score
from comp.data.example import Example
from comp.errors import CompExportError
from comp.metrics.cider import cider
from serve.engines.blip_generator import BlipGenerator
from serve.evaluation.scores import (
    Evaluation,
    Examples,
    Figure,
    Mean,
    Measure,
    MeasureOptions,
    Score,
    chunks,
)
from serve.generation.options import GenerationOptions

METRIC = "things of the picture that are named (with copies), and CIDEr-D"
CIDER = "CIDEr-D"


def evaluate_captions(
    engine: BlipGenerator,
    examples: Examples[Example],
    options: GenerationOptions,
    batch_size: int = 16,
    advance: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Caption every picture and compare with the references.

    Objects are the names of EmojiScenes' pictures in the first reference (``things_score``); other data
    has none, and CIDEr-D is the only metric.

    Args:
        engine: the artifact.
        examples: read once, in order; ``answers`` are the references, or ``answer`` is the only one.
        options: options of generation.
        batch_size: pictures captioned together.
        advance: called after every chunk with its number of pictures.

    Raises:
        CompExportError: fewer than two pictures, for which CIDEr-D is undefined.
    """
    if len(examples) < 2:
        raise CompExportError(
            f"{len(examples)} pictures: CIDEr-D needs at least two to weigh words"
        )
    captions: list[str] = []
    references: list[tuple[str, ...]] = []
    right = named = present = 0
    for chunk in chunks(examples):
        answers = engine.generate_batch([([each.image], "") for each in chunk], options, batch_size)
        for example, answer in zip(chunk, answers, strict=True):
            captions.append(answer.text)
            references.append(example.answers or (example.answer,))
            counts = things_score(answer.text, list(names_in(references[-1][0]).elements()))
            right, named, present = (
                total + count for total, count in zip((right, named, present), counts, strict=True)
            )
        advance(len(chunk))
    consensus = Mean.of(cider(captions, references))
    if not present:
        return Evaluation(consensus, {}, tuple(captions), CIDER)
    kinds: dict[str, Figure] = {CIDER: consensus, "names that are there": Score(right, named)}
    return Evaluation(Score(right, present), kinds, tuple(captions), "things named")


def measure(options: MeasureOptions) -> Measure:
    """The measure of an engine's captions."""
    return Measure(
        METRIC,
        lambda engine, examples, advance: evaluate_captions(
            engine, examples, options.generation, options.batch_size, advance
        ),
    )
