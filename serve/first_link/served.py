"""An engine of ``serve`` as a side of the first link."""

import numpy as np
from numpy.typing import NDArray

from comp.errors import CompExportError
from export.artifact.llava_manifest import LlavaManifest
from export.proof.first_link.reading import Outputs, Reading, Refused
from export.proof.first_link.request import Picture, Request
from export.proof.outputs import embedding, logits, similarity, statement, statement_logit
from serve.engines.blip_generator import BlipGenerator
from serve.engines.blip_judge import Judge
from serve.engines.blip_retriever import BlipRetriever
from serve.engines.llava import Engine
from serve.engines.preprocess import model_views, preprocess
from serve.engines.retriever import Retriever
from serve.generation.options import GenerationOptions
from serve.loading import TaskEngine


class Served:
    """An engine (see ``export.proof.first_link.reading.Side``)."""

    def __init__(self, engine: TaskEngine, name: str, of_tower: bool = False) -> None:
        """``of_tower``: give an image as many tokens as the original has before any selection."""
        self._places_of_tower = of_tower
        self.name = name
        self.not_run = ""
        self._engine = engine

    def read(self, request: Request, max_new_tokens: int, run: bool) -> Reading | Refused:
        try:
            return self._read(request, max_new_tokens, run)
        except CompExportError as error:
            return Refused(str(error))

    def resized(self, images: tuple[Picture, ...]) -> list[NDArray[np.uint8]]:
        settings = self._engine.manifest.image_processor
        return [np.asarray(view) for image in images for view in model_views(image, settings)]

    def _read(self, request: Request, max_new_tokens: int, run: bool) -> Reading:
        engine, images, text = self._engine, list(request.images), request.text
        prompt: str | None = None
        if isinstance(engine, Engine):
            prompt = engine.render(text, len(images))
            ids = engine.encode(text, images).input_ids
            if self._places_of_tower:
                ids = _of_tower(ids, engine.manifest)
        elif isinstance(engine, BlipGenerator) and not engine.asks and not text.strip():
            ids = np.zeros(0, np.int64)  # a caption without a beginning
        else:
            ids = engine.encode(text, "text")
        wanted = 2 if isinstance(engine, Judge) else 1
        if not isinstance(engine, Engine) and len(images) != wanted:
            raise CompExportError(f"{len(images)} images: this model takes {wanted}")
        pixels = preprocess(images, engine.manifest.image_processor) if images else None
        outputs = _outputs(engine, images, text, max_new_tokens) if run else None
        return Reading(ids, pixels, prompt, outputs)


def _of_tower(ids: NDArray[np.int64], manifest: LlavaManifest) -> NDArray[np.int64]:
    """The ids ``[N]`` with one image token for each token of the vision tower, as in transformers.

    They differ if tokens are selected: then an image has fewer tokens in the prompt.
    """
    token, places = manifest.image
    is_image = ids == token
    within = (np.cumsum(is_image) - 1) % places
    first = manifest.vision.all_image_tokens * (within == 0)
    return np.repeat(ids, np.where(is_image, first, 1))


def _outputs(engine: TaskEngine, images: list[Picture], text: str, max_new_tokens: int) -> Outputs:
    if isinstance(engine, (Engine, BlipGenerator)):
        answer = engine.generate(images, text, GenerationOptions(max_new_tokens=max_new_tokens))
        first = logits(engine.next_token_logits(images, text))
        ended = answer.finish_reason == "eos"
        return Outputs({"logits": first}, answer.token_ids, ended, answer.text)
    if isinstance(engine, Judge):
        return Outputs({"logits": statement(engine.logits(images, text))})
    seen, read = engine.embed_images(images), engine.embed_texts([text])
    if isinstance(engine, BlipRetriever):
        matched = engine.match_pairs([(0, 0)], seen, read)
        cosine = similarity((seen.embeds @ read.embeds.T)[0])
        match = statement_logit(np.array(matched, np.float32))
        return Outputs({"scores": cosine, "logits": match})
    assert isinstance(engine, Retriever)
    of_texts, _ = engine.match(seen, read)
    embeds = embedding(seen.embeds[0], read.embeds[0])
    scores = similarity(of_texts.reshape(-1), engine.manifest.logit_scale or 1.0)
    return Outputs({"embeddings": embeds, "scores": scores})
