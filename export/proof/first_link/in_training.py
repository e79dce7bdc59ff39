"""The batches of ``prune`` as a side of the first link."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.data.example import AnyExample, Example, PairExample
from comp.data.images import read_image
from comp.errors import CompExportError
from comp.registry.families import family_called
from export.proof.first_link.reading import Reading, Refused, images_in
from export.proof.first_link.request import Picture, Request

PAIR = 2  # pictures per statement


class InTraining:
    """The batches of an adapter (see ``export.proof.first_link.reading.Side``)."""

    name = "batches of prune"
    not_run = "the batches of prune are compared as far as the model"

    def __init__(self, adapter: Any) -> None:
        """``adapter`` is a loaded ``FamilyAdapter``."""
        self._adapter = adapter

    def read(self, request: Request, max_new_tokens: int, run: bool) -> Reading | Refused:
        del max_new_tokens, run
        adapter = self._adapter
        family = family_called(adapter.name)
        try:
            example = self._example(request)
            if family is not None and family.reads_image_tokens:
                collator = adapter.collator
                ids = collator.prompt_ids(request.text, read_image(request.images[0]))
                pixels = collator.pixels([example]).numpy()
                return Reading(np.array(ids, dtype=np.int64), pixels, collator.prompt(request.text))
            batch = adapter.collate([example])
        except CompExportError as error:
            return Refused(str(error))
        ids = batch.input_ids[0].numpy()
        nothing = adapter.task == "caption" and not request.text.strip()
        return Reading(np.zeros(0, np.int64) if nothing else ids, batch.pixel_values.numpy())

    def resized(self, images: tuple[Picture, ...]) -> list[NDArray[np.uint8]]:
        pictures = [read_image(image) for image in images]
        processor = self._adapter.processor.image_processor
        pixels = [
            processor([picture], do_rescale=False, do_normalize=False)["pixel_values"]
            for picture in pictures
        ]
        return [
            each.transpose(1, 2, 0).astype(np.uint8) for some in pixels for each in images_in(some)
        ]

    def _example(self, request: Request) -> AnyExample:
        """The request as an example of a data file.

        Raises:
            CompExportError: the task takes another number of pictures.
        """
        wanted = PAIR if self._adapter.task == "statement" else 1
        if len(request.images) != wanted:
            raise CompExportError(f"{len(request.images)} pictures: examples have {wanted}")
        pictures = [read_image(image) for image in request.images]
        if wanted == PAIR:
            return PairExample((pictures[0], pictures[1]), request.text, answer=True, kind="")
        return Example(pictures[0], request.text, request.text, kind="")
