"""One request of any task, to be measured in this process or in a fresh one."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from comp.data.embedded import embedded_examples
from comp.data.images import ImageSource, read_image
from comp.errors import CompExportError
from comp.plan import Task
from serve.engines.blip_generator import BlipGenerator
from serve.engines.blip_judge import Judge
from serve.engines.retriever import Retriever
from serve.generation.options import GenerationOptions
from serve.generation.results import Timings, TokenText
from serve.loading import TaskEngine


@dataclass(frozen=True)
class BenchRequest:
    """Images, texts and answer length of a request.

    Attributes:
        task: task of the model.
        images: one for a question, two for a statement, for retrieval those to rank.
        texts: the question, the statement, or the candidates.
        new_tokens: exact length of every answer; end-of-sequence tokens do not end it.
    """

    task: Task
    images: tuple[ImageSource, ...]
    texts: tuple[str, ...]
    new_tokens: int = 0

    def save(self, folder: Path) -> Path:
        """Write the request and its pictures into one folder, for another process."""
        names = []
        for number, image in enumerate(self.images):
            names.append(str(folder / f"{number}.png"))
            assert isinstance(image, Image.Image)
            image.save(names[-1])
        path = folder / "work.json"
        path.write_text(json.dumps(vars(replace(self, images=tuple(names)))), encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: Path) -> "BenchRequest":
        fields = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            fields["task"], tuple(fields["images"]), tuple(fields["texts"]), fields["new_tokens"]
        )


def work_of(
    task: Task,
    images: Sequence[ImageSource],
    texts: Sequence[str],
    new_tokens: int,
    index: int = 0,
) -> BenchRequest:
    """Make a request; missing images and texts are taken from the test split of EmojiScenes.

    Raises:
        CompExportError: a wrong number of images or texts, or an image that cannot be read.
    """
    example = embedded_examples(task, "test", index + 1)[index]
    shown = getattr(example, "images", None) or (example.image,)
    pictures = [read_image(image) for image in images] or list(shown)
    text_field = {"retrieval": "answer", "statement": "statement", "question": "question"}
    chosen_texts = list(texts) or (
        [getattr(example, text_field[task])] if task in text_field else []
    )
    check_counts(task, len(pictures), len(chosen_texts))
    generates = task in ("question", "caption")
    return BenchRequest(task, tuple(pictures), tuple(chosen_texts), new_tokens if generates else 0)


def check_counts(task: Task, images: int, texts: int) -> None:
    """Refuse a request with too many or too few images or texts.

    Raises:
        CompExportError: names the numbers that the task takes.
    """
    wanted = COUNTS[task]
    for option, count, (low, high) in (
        ("--image", images, wanted.images),
        ("--prompt", texts, wanted.texts),
    ):
        if low <= count and (high is None or count <= high):
            continue
        some = "at least 1" if high is None else str(high) if low == high else f"up to {high}"
        if count == 0:
            raise CompExportError(f"{option} is missing: {wanted.name} takes {some}")
        often = {1: "once", 2: "twice"}[high or low]
        raise CompExportError(f"give {option} {often}: {wanted.name} takes {some}, not {count}")


@dataclass(frozen=True)
class _Counts:
    """Smallest and largest number of images and texts of a task (``None``: any number)."""

    name: str
    images: tuple[int, int | None]
    texts: tuple[int, int | None]


COUNTS: dict[Task, _Counts] = {
    "question": _Counts("a question", (1, None), (1, 1)),
    "caption": _Counts("a caption", (1, 1), (0, 1)),
    "statement": _Counts("a statement about two images", (2, 2), (1, 1)),
    "retrieval": _Counts("retrieval", (1, None), (1, None)),
}


@dataclass(frozen=True)
class Done:
    """The time of a request, and its size."""

    timings: Timings
    size: dict[str, int]


def perform(engine: TaskEngine, work: BenchRequest) -> Done:
    """Run a request once.

    Raises:
        CompExportError: as the engine does.
    """
    if isinstance(engine, Retriever):
        timings = engine.rank(work.images, work.texts).timings
        tokens = sum(engine.texts.encode(text).size for text in work.texts)
        return Done(timings, {"images": len(work.images), "text_tokens": tokens})
    if isinstance(engine, Judge):
        timings = engine.judge(work.images, work.texts[0]).timings
        tokens = engine.texts.encode(work.texts[0]).size
        return Done(timings, {"images": len(work.images), "text_tokens": tokens})
    answer = engine.generate(work.images, _prompt(work), _options(work))
    if isinstance(engine, BlipGenerator):
        size = {"images": len(work.images), "text_tokens": answer.prompt_tokens}
    else:
        size = {"prompt_tokens": answer.prompt_tokens, "image_tokens": answer.image_tokens}
    return Done(answer.timings, size)


def perform_noting(engine: TaskEngine, work: BenchRequest, shown: Callable[[], None]) -> None:
    """As ``perform``; ``shown`` is called when a user would first see something."""
    if isinstance(engine, (Retriever, Judge)):
        perform(engine, work)
        shown()
        return
    waiting = True
    for event in engine.stream(work.images, _prompt(work), _options(work)):
        if waiting and isinstance(event, TokenText):
            shown()
            waiting = False


def _prompt(work: BenchRequest) -> str:
    return work.texts[0] if work.texts else ""


def _options(work: BenchRequest) -> GenerationOptions:
    return GenerationOptions(max_new_tokens=work.new_tokens, ignore_eos=True)
