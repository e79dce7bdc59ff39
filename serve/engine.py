"""The engine: answers questions about images with an exported artifact, without torch."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Literal, TypeAlias

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from comp.errors import CompExportError
from comp.images import ImageSource
from export.manifest import Artifact, Manifest, load_artifact
from serve.answer import Answer
from serve.decoder import Decoder, Prefill
from serve.options import GenerationOptions
from serve.preprocess import preprocess
from serve.prompt import EncodedPrompt, PromptEncoder
from serve.results import Event, Finished, Generation, Prefilled, Timings, TokenText
from serve.sampling import Sampler
from serve.session import Graph, choose_device

Request: TypeAlias = "tuple[Sequence[ImageSource], str]"  # images, prompt
DEFAULT_OPTIONS = GenerationOptions()


class Engine:
    """One artifact, ready to answer; holds no state between requests.

    Requests may come from several threads. A dense and a compressed engine live in one process.
    """

    def __init__(
        self, artifact: Artifact, device: Literal["cpu", "cuda"], threads: int | None
    ) -> None:
        """Use ``Engine.load``."""
        self.artifact = artifact
        self.device = device
        self.threads = threads or os.cpu_count() or 1
        self._prompts = PromptEncoder(artifact)
        self._vision = Graph(artifact.vision_encoder, device, threads)
        # A table look-up: more than one thread only costs.
        self._embed = Graph(artifact.embed_tokens, device, 1)
        self._decoder = Decoder(Graph(artifact.decoder_model, device, threads), artifact.manifest)

    @classmethod
    def load(
        cls,
        directory: Path | str,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        threads: int | None = None,
        check_hashes: bool = True,
    ) -> "Engine":
        """Load an artifact directory (``onnx/`` or ``onnx-dense/`` of a run).

        Args:
            directory: holds ``manifest.json``.
            device: ``auto`` takes CUDA where this ONNX Runtime has it.
            threads: of one operator on the CPU; ``None``: one for each core.
            check_hashes: compare the SHA-256 of every file with the manifest.

        Raises:
            CompExportError: for a missing, damaged or unloadable artifact; ``cuda`` without it.
        """
        if threads is not None and threads < 1:
            raise CompExportError(f"threads {threads}: choose 1 or more")
        chosen = choose_device(device)
        return cls(load_artifact(Path(directory), check_hashes), chosen, threads)

    @property
    def manifest(self) -> Manifest:
        return self.artifact.manifest

    def generate(
        self,
        images: Sequence[ImageSource],
        prompt: str,
        options: GenerationOptions = DEFAULT_OPTIONS,
    ) -> Generation:
        """Answer one question. Arguments and errors as ``stream``."""
        for event in self.stream(images, prompt, options):
            if isinstance(event, Finished):
                return event.generation
        raise AssertionError("a stream ends with Finished")

    def stream(
        self,
        images: Sequence[ImageSource],
        prompt: str,
        options: GenerationOptions = DEFAULT_OPTIONS,
    ) -> Iterator[Event]:
        """Answer one question, token by token.

        Args:
            images: pictures as ``comp.images.read_image`` takes them; may be empty.
            prompt: the question, without the template's words.
            options: how to generate.

        Returns:
            One ``Prefilled``, one ``TokenText`` a token, one ``Finished``.

        Raises:
            CompExportError: at the call, for unreadable images and prompts that do not fit.
        """
        start = perf_counter()
        self._decoder.check_keep_factor(options.keep_factor)
        encoded = self._prompts.encode(prompt, len(images))
        pixels = self._pixels(images)
        return self._stream(encoded, pixels, options, _ms_since(start))

    def _stream(
        self,
        prompt: EncodedPrompt,
        pixels: NDArray[np.float32] | None,
        options: GenerationOptions,
        prepare_ms: float,
    ) -> Iterator[Event]:
        prefill, vision_ms, prefill_ms = self._prefill([prompt], pixels, options)
        start = perf_counter()
        sampler = Sampler(options)
        answer = self._answer(prompt, prefill, 0, options)
        token_id = sampler.pick(prefill.logits[0])
        timings = Timings(prepare_ms, vision_ms, prefill_ms + _ms_since(start))
        yield Prefilled(answer.kept, timings)
        state, decode_ms, steps = prefill.state, 0.0, 0
        while True:
            start = perf_counter()
            text = answer.take(token_id)
            decode_ms += _ms_since(start)
            yield TokenText(token_id, text)  # the caller's time is not on our clock
            if answer.finish_reason is not None:
                break
            start = perf_counter()
            logits, state = self._decoder.step(self._embedded([token_id]), 1, state)
            token_id = sampler.pick(logits[0])
            steps += 1
            decode_ms += _ms_since(start)
        done = Timings(prepare_ms, vision_ms, timings.prefill_ms, decode_ms, steps)
        yield answer.finished(done)

    def generate_batch(
        self,
        requests: Sequence[Request],
        options: GenerationOptions = DEFAULT_OPTIONS,
        batch_size: int = 16,
    ) -> list[Generation]:
        """Answer many questions, those of equal length together; answers come in the given order.

        The timings of an answer are those of its batch. Arguments and errors as ``stream``.
        """
        self._decoder.check_keep_factor(options.keep_factor)
        prompts = [self._prompts.encode(prompt, len(images)) for images, prompt in requests]
        groups: dict[tuple[int, int], list[int]] = {}
        for index, prompt in enumerate(prompts):
            groups.setdefault((prompt.length, prompt.vision.size), []).append(index)
        answers: dict[int, Generation] = {}
        for members in groups.values():
            for first in range(0, len(members), batch_size):
                rows = members[first : first + batch_size]
                images = [image for row in rows for image in requests[row][0]]
                found = self._batch([prompts[row] for row in rows], images, options, rows)
                answers.update(zip(rows, found, strict=True))
        return [answers[index] for index in range(len(requests))]

    def _batch(
        self,
        prompts: Sequence[EncodedPrompt],
        images: Sequence[ImageSource],
        options: GenerationOptions,
        streams: Sequence[int],
    ) -> list[Generation]:
        """Prompts of equal length and equal numbers of image tokens, generated in step."""
        start = perf_counter()
        pixels = self._pixels(images)
        prepare_ms = _ms_since(start)
        prefill, vision_ms, prefill_ms = self._prefill(prompts, pixels, options)
        start = perf_counter()
        samplers = [Sampler(options, stream) for stream in streams]
        answers = [self._answer(p, prefill, row, options) for row, p in enumerate(prompts)]
        logits, state, steps = prefill.logits, prefill.state, 0
        while True:
            tokens = [sampler.pick(row) for sampler, row in zip(samplers, logits, strict=True)]
            for answer, token_id in zip(answers, tokens, strict=True):
                if answer.finish_reason is None:
                    answer.take(token_id)
            if all(answer.finish_reason is not None for answer in answers):
                break
            logits, state = self._decoder.step(self._embedded(tokens), len(tokens), state)
            steps += 1
        timings = Timings(prepare_ms, vision_ms, prefill_ms, _ms_since(start), steps)
        return [answer.finished(timings).generation for answer in answers]

    def _pixels(self, images: Sequence[ImageSource]) -> NDArray[np.float32] | None:
        return preprocess(images, self.manifest.image_processor) if images else None

    def _prefill(
        self,
        prompts: Sequence[EncodedPrompt],
        pixels: NDArray[np.float32] | None,
        options: GenerationOptions,
    ) -> tuple[Prefill, float, float]:
        """Prefill and the milliseconds of the vision encoder and of the rest."""
        start = perf_counter()
        features = None
        if pixels is not None:
            (features,), _ = self._vision.run({"pixel_values": pixels}, ["image_features"])
        vision_ms = _ms_since(start)
        start = perf_counter()
        ids = np.stack([prompt.input_ids for prompt in prompts])  # [B, N]
        (embeds,), _ = self._embed.run({"input_ids": ids}, ["inputs_embeds"])
        vision = np.stack([prompt.vision for prompt in prompts])  # [B, Nv]
        if features is not None:
            rows = np.arange(len(prompts))[:, None]
            embeds[rows, vision] = features.reshape(len(prompts), -1, features.shape[-1])
        text = np.stack([prompt.text for prompt in prompts])  # [B, Nt]
        prefill = self._decoder.prefill(embeds, vision, text, options.keep_factor)
        return prefill, vision_ms, _ms_since(start)

    def _answer(
        self, prompt: EncodedPrompt, prefill: Prefill, row: int, options: GenerationOptions
    ) -> Answer:
        kept = {layer: places[row] for layer, places in prefill.kept.items()}
        return Answer(self.manifest, self._prompts.tokenizer, prompt, kept, options)

    def _embedded(self, tokens: Sequence[int]) -> ort.OrtValue:
        """``inputs_embeds [B, 1, d]`` of one token a sequence, left where the decoder runs."""
        ids = np.array(tokens, dtype=np.int64)[:, None]
        _, (embeds,) = self._embed.run({"input_ids": ids}, kept=["inputs_embeds"])
        return embeds


def _ms_since(start: float) -> float:
    return (perf_counter() - start) * 1000
