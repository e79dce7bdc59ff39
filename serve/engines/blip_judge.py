"""Judge statements about two images as true or false (NLVR2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from comp.data.images import ImageSource
from comp.errors import CompExportError
from comp.plan import STATEMENT_IMAGES as IMAGES
from serve.engines.encoder import EncoderEngine, kept_of, ms_since
from serve.engines.encoder_texts import by_length
from serve.generation.finite import check_finite
from serve.generation.results import Timings, TowerKept

Request = tuple[Sequence[ImageSource], str]  # images, statement


@dataclass(frozen=True)
class Judgement:
    """The judgement of one statement.

    Attributes:
        probability: that the statement is true.
        kept: kept tokens of both images and of the statement.
        timings: ``prefill_ms`` is the time of the statement; nothing is decoded.
    """

    probability: float
    kept: TowerKept
    timings: Timings

    @property
    def verdict(self) -> bool:
        return self.probability > 0.5


class Judge(EncoderEngine):
    """Computes the probability that a statement about two images is true."""

    def judge(self, images: Sequence[ImageSource], statement: str) -> Judgement:
        """Judge one statement.

        Raises:
            CompExportError: not two images, an unreadable one, an empty statement or one longer than the
                model's positions; logits that are not finite.
        """
        return self.judge_batch([(images, statement)])[0]

    def judge_batch(self, requests: Sequence[Request], batch_size: int = 16) -> list[Judgement]:
        """Judge many statements, those of equal length together; times are of the batch. As ``judge``."""
        for images, _ in requests:
            _check(images)
        ids = [self.encode(statement, "statement") for _, statement in requests]
        judgements: dict[int, Judgement] = {}
        for places, batch in by_length(ids, batch_size):
            pictures = [image for place in places for image in requests[place][0]]
            judged = self._judge(pictures, batch, places)
            judgements.update(zip(places, judged, strict=True))
        return [judgements[place] for place in range(len(requests))]

    def logits(self, images: Sequence[ImageSource], statement: str) -> NDArray[np.float32]:
        """Logits of false and true, ``[2]``. Arguments and errors as for ``judge``."""
        _check(images)
        ids = self.encode(statement, "statement")
        seen = self.graphs.run("vision_model", {"pixel_values": self.pixels(images)})
        logits: NDArray[np.float32] = self._read(seen["last_hidden_state"], ids[None])["logits"][0]
        return logits

    def _read(
        self, states: NDArray[np.float32], ids: NDArray[np.int64]
    ) -> dict[str, NDArray[np.float32]]:
        """Run statements ``[B, L]`` with the states of their images ``[2B, K, D]``."""
        feeds = {f"encoder_hidden_states.{n}": states[n::IMAGES] for n in range(IMAGES)}
        return self.graphs.run("text_encoder", {"input_ids": ids, **feeds})

    def _judge(
        self, images: list[ImageSource], ids: NDArray[np.int64], places: Sequence[int]
    ) -> list[Judgement]:
        """Judge statements ``[B, L]``; ``images`` holds the two images of each in turn.

        ``places`` are the indices of the requests, for errors.
        """
        start = perf_counter()
        pixels = self.pixels(images)
        prepare_ms = ms_since(start)
        start = perf_counter()
        seen = self.graphs.run("vision_model", {"pixel_values": pixels})
        vision_ms = ms_since(start)
        start = perf_counter()
        states = seen["last_hidden_state"]
        read = self._read(states, ids)
        logits = read["logits"].astype(np.float64)  # [B, 2]: false, true
        precision = self.manifest.precision
        check_finite(states, "the states of the images", precision)
        for place, row in zip(places, logits, strict=True):
            check_finite(row, f"the logits of statement {place + 1}", precision)
        leads = logits[:, 1] - logits[:, 0]
        with np.errstate(over="ignore"):  # for extreme logits
            probabilities = 1 / (1 + np.exp(-leads))
        timings = Timings(prepare_ms, vision_ms, ms_since(start))
        towers, texts = kept_of("vision", [seen]), kept_of("language", [read])
        return [
            Judgement(
                float(probabilities[row]),
                TowerKept(
                    {
                        where: rows[IMAGES * row : IMAGES * (row + 1)]
                        for where, rows in towers.items()
                    }
                    | {where: rows[row : row + 1] for where, rows in texts.items()}
                ),
                timings,
            )
            for row in range(len(ids))
        ]


def _check(images: Sequence[ImageSource]) -> None:
    if len(images) != IMAGES:
        raise CompExportError(f"{len(images)} images for a statement about {IMAGES}: give {IMAGES}")
