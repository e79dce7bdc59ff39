"""Answer the questions of a benchmark with the engine of an artifact; without lmms-eval."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from comp.errors import CompExportError
from serve.api import load
from serve.engines.blip_generator import BlipGenerator
from serve.engines.llava import Engine
from serve.lmms.settings import Images, ModelSettings


def engine_for(settings: ModelSettings) -> Engine | BlipGenerator:
    """Load the engine of the artifact.

    Raises:
        CompExportError: it does not answer questions, or as for ``serve.load``.
    """
    engine = load(**settings.for_load)
    if isinstance(engine, Engine) or (isinstance(engine, BlipGenerator) and engine.asks):
        return engine
    raise CompExportError(
        f"{settings.run} does not answer questions (its task is {engine.manifest.task}), and comp_export "
        "does nothing else: name a run of a LLaVA or of a BLIP for questions"
    )


def pictures_of(visuals: Sequence[Any] | None, images: Images, where: str) -> list[Image.Image]:
    """Return the pictures of one question; none is left out unless ``images`` says so.

    Args:
        visuals: those of the task's ``doc_to_visual``; ``None`` and empty: a question without a picture,
            which a LLaVA answers and a BLIP refuses.
        images: ``middle`` keeps the middle one of several.
        where: name of the question, for errors.

    Raises:
        CompExportError: one is no picture, but a video or a sound.
    """
    pictures = list(visuals or ())
    for visual in pictures:
        if not isinstance(visual, Image.Image):
            raise CompExportError(
                f"{where} shows a {type(visual).__name__}, no picture: comp_export takes pictures, neither "
                "videos nor sounds"
            )
    return [pictures[len(pictures) // 2]] if pictures and images == "middle" else pictures
