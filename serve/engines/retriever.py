"""Retrieval: embed images and texts, and rank each by the embeddings of the other kind."""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from comp.data.images import ImageSource
from comp.errors import CompExportError
from comp.plan import Place
from export.configs.text_end import read_to_end
from serve.engines.encoder import EncoderEngine, kept_of, ms_since
from serve.engines.encoder_texts import by_length
from serve.generation.finite import check_unit_length
from serve.generation.results import Timings, TowerKept

BATCH = 16  # images, or texts of one length, per batch
Kept = dict[Place, list[NDArray[np.int64]]]  # kept tokens of each image or text


@dataclass(frozen=True)
class EmbeddedImages:
    """Embeddings of length one ``[I, P]`` float32.

    Attributes:
        embeds: the embeddings.
        kept: the kept tokens at each drop place.
        states: states of the remaining tokens ``[I, K, D]``, if matching needs them.
    """

    embeds: NDArray[np.float32]
    kept: Kept
    states: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class EmbeddedTexts:
    """Embeddings of length one ``[T, P]`` float32, the kept tokens, and the ids of each text."""

    embeds: NDArray[np.float32]
    kept: Kept
    ids: list[NDArray[np.int64]]


@dataclass(frozen=True)
class Ranking:
    """Scores of every image with every text, as logits.

    Attributes:
        of_texts: the texts of each image ``[I, T]``.
        of_images: the images of each text ``[T, I]``.
        kept: kept tokens of the image tower and of the text tower.
        timings: ``prefill_ms`` is the time of the texts; nothing is decoded.
    """

    of_texts: NDArray[np.float32]
    of_images: NDArray[np.float32]
    kept: TowerKept
    timings: Timings

    def probabilities(self, image: int) -> NDArray[np.float32]:
        """Probabilities of the texts ``[T]`` for one image, assuming that one of them is right."""
        scores = self.of_texts[image] - self.of_texts[image].max()
        shares: NDArray[np.float32] = np.exp(scores) / np.exp(scores).sum()
        return shares


class Retriever(EncoderEngine):
    """Ranks texts for images and images for texts, by the cosine of their embeddings."""

    def embed_images(
        self, images: Sequence[ImageSource], batch_size: int = BATCH
    ) -> EmbeddedImages:
        """Embed pictures as ``comp.data.images.read_image`` takes them.

        Raises:
            CompExportError: there is no picture, or an unreadable one; embeddings are not finite or zero.
        """
        return self._see(self._batches(images, batch_size))

    def _batches(
        self, images: Sequence[ImageSource], batch_size: int = BATCH
    ) -> list[NDArray[np.float32]]:
        if not images:
            raise CompExportError("no image: give at least one")
        starts = range(0, len(images), batch_size)
        return [self.pixels(images[first : first + batch_size]) for first in starts]

    def _see(self, pixels: list[NDArray[np.float32]]) -> EmbeddedImages:
        outputs = [self.graphs.run("vision_model", {"pixel_values": each}) for each in pixels]

        def all_of(name: str) -> NDArray[np.float32]:
            return np.concatenate([each[name] for each in outputs])

        states = all_of("last_hidden_state") if "last_hidden_state" in outputs[0] else None
        embeds = all_of("image_embeds")
        check_unit_length(embeds, "image", self.manifest.precision)
        return EmbeddedImages(embeds, kept_of("vision", outputs), states)

    def embed_texts(self, texts: Sequence[str], batch_size: int = BATCH) -> EmbeddedTexts:
        """Embed texts.

        Raises:
            CompExportError: there is no text, an empty or too long one; embeddings are not finite or
                zero.
        """
        if not texts:
            raise CompExportError("no candidate texts: give at least one")
        end = self.manifest.end_of_text
        ids = [read_to_end(self.encode(text, "candidate"), end) for text in texts]
        embeds: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(texts)
        kept: Kept = {}
        for places, batch in by_length(ids, batch_size):
            outputs = self.graphs.run("text_model", {"input_ids": batch})
            stayed = kept_of("language", [outputs])
            for row, place in enumerate(places):
                embeds[place] = outputs["text_embeds"][row]
            for where, tokens in stayed.items():
                rows = kept.setdefault(where, [np.empty(0, np.int64)] * len(texts))
                for row, place in enumerate(places):
                    rows[place] = tokens[row]
        together = np.stack(embeds)
        check_unit_length(together, "candidate", self.manifest.precision)
        return EmbeddedTexts(together, kept, ids)

    def rank(self, images: Sequence[ImageSource], texts: Sequence[str]) -> Ranking:
        """Rank every text for every image, and every image for every text.

        Raises:
            CompExportError: as for ``embed_images`` and ``embed_texts``.
        """
        start = perf_counter()
        if not texts:
            raise CompExportError("no candidate texts: give at least one")
        pixels = self._batches(images)
        prepare_ms = ms_since(start)
        start = perf_counter()
        seen = self._see(pixels)
        vision_ms = ms_since(start)
        start = perf_counter()
        read = self.embed_texts(texts)
        of_texts, of_images = self.match(seen, read)
        timings = Timings(prepare_ms, vision_ms, ms_since(start))
        return Ranking(of_texts, of_images, TowerKept(seen.kept | read.kept), timings)

    def match(
        self, seen: EmbeddedImages, read: EmbeddedTexts
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Score embedded images and texts: logits ``[I, T]`` and ``[T, I]``, as in ``Ranking``.

        Embeddings can be reused to rank against many others.
        """
        scores = seen.embeds @ read.embeds.T * np.float32(self.manifest.logit_scale or 1.0)
        return scores, scores.T
