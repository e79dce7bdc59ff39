"""One question to both models, one after the other."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter, sleep
from typing import Literal

from PIL import Image

from comp.errors import CompExportError
from comp.images import ImageSource
from demo.kept_tokens import KeptPicture, Patches, kept_picture
from export.llava_manifest import LlavaManifest
from serve.artifacts import DEFAULT_FORM, Form, Which, artifacts_of, engines_of, is_verified
from serve.engine import Engine
from serve.options import GenerationOptions
from serve.preprocess import model_view
from serve.results import Finished, Generation, TokenText

# A browser on this machine draws what it was sent; the next clock starts when it has done so.
DRAWING_SECONDS = 0.25
BETWEEN_DRAWINGS = 0.06  # seconds: drawing each token at once would slow the clock it shows


@dataclass(frozen=True)
class Side:
    """One model's half of the page at a moment."""

    which: Which
    state: Literal["ready", "waiting", "answering", "done"] = "ready"
    text: str = ""
    generation: Generation | None = None


@dataclass(frozen=True)
class Comparison:
    """Both halves at a moment."""

    dense: Side = Side("dense")
    compressed: Side = Side("compressed")


@dataclass(frozen=True)
class Pair:
    """The two engines of a run."""

    name: str
    dense: Engine
    compressed: Engine
    verified: bool

    @classmethod
    def load(
        cls,
        run: Path,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        threads: int | None = None,
        form: Form = DEFAULT_FORM,
    ) -> "Pair":
        """Load both artifacts of a run and let each answer once, so that no first question is cold.

        Raises:
            CompExportError: as ``serve.artifacts`` and ``Engine.load``.
        """
        found, directories = artifacts_of(run, form)
        engines = engines_of(directories, device, threads, form.provider)
        verified = all(is_verified(path) for path in directories.values())
        answering = {which: each for which, each in engines.items() if isinstance(each, Engine)}
        if len(answering) < len(engines):
            raise CompExportError(
                f"{found.path} answers no questions, and the page is for those: see it with "
                "`comp-export run`"
            )
        pair = cls(found.path.name, answering["dense"], answering["compressed"], verified)
        grey = Image.new("RGB", (64, 64), (128, 128, 128))
        for engine in answering.values():
            engine.generate([grey], "what is this?", GenerationOptions(max_new_tokens=2))
        return pair

    @property
    def manifests(self) -> dict[Which, LlavaManifest]:
        return {"dense": self.dense.manifest, "compressed": self.compressed.manifest}

    @property
    def can_scale(self) -> bool:
        """Whether the compressed artifact takes a factor on its keep ratios."""
        manifest = self.compressed.manifest
        return bool(manifest.decoder.drops) and manifest.flavour == "onnxruntime"

    def compare(
        self, image: ImageSource, question: str, options: GenerationOptions
    ) -> Iterator[Comparison]:
        """Ask the original, then the compressed model; yields whenever there is something to show.

        The second starts when the first is done, so neither slows the other's clock.

        Raises:
            CompExportError: as ``Engine.stream``.
        """
        now = Comparison(Side("dense", "answering"), Side("compressed", "waiting"))
        yield now
        sleep(DRAWING_SECONDS)
        plain = replace(options, keep_factor=1.0)  # the original drops nothing
        for side in _answers(self.dense, "dense", image, question, plain):
            now = replace(now, dense=side)
            yield now
        now = replace(now, compressed=Side("compressed", "answering"))
        yield now
        sleep(DRAWING_SECONDS)
        for side in _answers(self.compressed, "compressed", image, question, options):
            now = replace(now, compressed=side)
            yield now

    def kept_pictures(
        self, image: ImageSource, generation: Generation
    ) -> tuple[Image.Image, list[KeptPicture]]:
        """What the model saw, and what was left of it after each drop."""
        manifest = self.compressed.manifest
        view = model_view(image, manifest.image_processor)
        pictures = [
            kept_picture(view, Patches.of(manifest), tokens, place)
            for place, tokens in generation.kept.seen()
        ]
        return view, pictures


def _answers(
    engine: Engine, which: Which, image: ImageSource, question: str, options: GenerationOptions
) -> Iterator[Side]:
    side = Side(which, "answering")
    drawn = perf_counter()
    for event in engine.stream([image], question, options):
        if isinstance(event, TokenText) and event.text:
            side = replace(side, text=side.text + event.text)
            if perf_counter() - drawn >= BETWEEN_DRAWINGS:
                yield side
                drawn = perf_counter()
        elif isinstance(event, Finished):
            generation = event.generation
            yield Side(which, "done", generation.text, generation)
