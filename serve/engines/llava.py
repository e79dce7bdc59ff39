"""The LLaVA engine: answer questions about images with an exported artifact, without torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from comp.checkpoints.chat_template import Message
from comp.checkpoints.tiling import grid_of
from comp.data.images import ImageSource, read_image
from comp.errors import CompExportError
from comp.utils.machine import usable_cores
from export.artifact.llava_manifest import LlavaArtifact, LlavaManifest
from export.artifact.load import kind_of
from serve.backends.base import Backend, BackendName, ProviderChoice, RequestSize, Rows
from serve.backends.llava_graphs import GraphBackend
from serve.backends.open import check_native, open_artifact
from serve.backends.seen_images import SeenImages
from serve.backends.seen_prefixes import SeenPrefixes
from serve.engines.llava_prompt import EncodedPrompt, PromptEncoder
from serve.engines.preprocess import preprocess
from serve.engines.tokenizer import ArtifactTokenizer
from serve.generation.answer import Answer, AnswerRequest
from serve.generation.decode import Started, answer_in_step, finished, stream_answer
from serve.generation.options import GenerationOptions
from serve.generation.results import Event, Generation, KeptTokens, SelectedTokens, Timings

Request: TypeAlias = "tuple[Sequence[ImageSource], str]"  # images, prompt
DEFAULT_OPTIONS = GenerationOptions()


@dataclass(frozen=True)
class Prepared:
    """A request as the graphs take it: its prompt, and the pixels ``[I, 3, S, S]`` of its images or tiles."""

    prompt: EncodedPrompt
    pixels: NDArray[np.float32] | None
    prepare_ms: float

    @property
    def size(self) -> tuple[int, int]:
        """Tokens and image tokens of the prompt: prompts of one size can be read together."""
        return self.prompt.length, int(self.prompt.vision.size)


class Engine:
    """One loaded artifact; holds no state between requests.

    Requests may come from several threads. A dense and a compressed engine can share a process.
    """

    def __init__(self, backend: Backend, threads: int | None = None) -> None:
        """Use ``Engine.load``; ``backend`` runs the graphs."""
        self._backend = backend
        self.threads = threads or usable_cores()
        self._prompts = PromptEncoder(backend.manifest, backend.tokenizer)

    @classmethod
    def load(
        cls,
        directory: Path | str,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        threads: int | None = None,
        check_hashes: bool = True,
        provider: ProviderChoice = "auto",
        backend: BackendName | None = None,
    ) -> "Engine":
        """Load an artifact or its engines: ``onnx/``, ``tensorrt/``, … of a run.

        Args:
            directory: holds ``manifest.json``, which says what it contains.
            device: ``auto`` takes a GPU if this ONNX Runtime can use one; engines need one.
            threads: threads of one operator on the CPU; ``None``: one for each core.
            check_hashes: compare the SHA-256 of every file with the manifest.
            provider: ONNX Runtime's execution provider; ``auto`` follows from the device.
            backend: ``None`` runs engines in TensorRT and graphs in ONNX Runtime.

        Raises:
            CompExportError: the directory is missing, damaged or cannot be loaded; the device, provider
                or backend is not available or does not run its contents.
        """
        if threads is not None and threads < 1:
            raise CompExportError(f"threads {threads}: choose 1 or more")
        path = Path(directory)
        runs: Backend
        if kind_of(path) == "tensorrt":
            runs = _native(path, device, provider, backend or "tensorrt", check_hashes)
        else:
            backend = backend or "onnxruntime"
            runs = GraphBackend(
                *open_artifact(
                    path, LlavaArtifact, device, threads, check_hashes, provider, backend
                )
            )
        return cls(runs, threads)

    @property
    def manifest(self) -> LlavaManifest:
        """The manifest of the ONNX artifact that runs, or that the engines were built from.

        Its ``files`` list the files that run.
        """
        return self._backend.manifest

    @property
    def backend(self) -> BackendName:
        return self._backend.name

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        return self._backend.device

    @property
    def provider(self) -> str:
        """ONNX Runtime's execution provider, or the version of OpenVINO or TensorRT."""
        return self._backend.provider

    def generate(
        self,
        images: Sequence[ImageSource],
        prompt: str,
        options: GenerationOptions = DEFAULT_OPTIONS,
    ) -> Generation:
        """Answer one question. Arguments and errors as for ``stream``."""
        return finished(self.stream(images, prompt, options))

    def stream(
        self,
        images: Sequence[ImageSource],
        prompt: str,
        options: GenerationOptions = DEFAULT_OPTIONS,
    ) -> Iterator[Event]:
        """Answer one question, token by token.

        Args:
            images: pictures as ``comp.data.images.read_image`` takes them; may be empty.
            prompt: the question, without the template's words.
            options: options of generation.

        Returns:
            One ``Prefilled``, one ``TokenText`` per token, one ``Finished``.

        Raises:
            CompExportError: at the call, for unreadable images and prompts that do not fit; at the token
                whose logits are not finite.
        """
        return self.stream_prepared(self.prepare(images, prompt, options), options)

    def stream_prepared(self, prepared: Prepared, options: GenerationOptions) -> Iterator[Event]:
        """Answer a prepared request, token by token; as ``stream``."""
        started, (answer,) = self.begin([prepared], [options])
        yield from stream_answer(answer, started, options)

    def prepare(
        self,
        images: Sequence[ImageSource],
        prompt: str | Sequence[Message],
        options: GenerationOptions = DEFAULT_OPTIONS,
    ) -> Prepared:
        """Read the images and encode the prompt; runs no graph.

        Args:
            images: pictures as ``comp.data.images.read_image`` takes them; may be empty.
            prompt: the question, without the template's words; or a conversation in the form of
                ``apply_chat_template``, with an image part for each of ``images``.
            options: options of generation.

        Raises:
            CompExportError: unreadable images, or a prompt that does not fit.
        """
        start = perf_counter()
        pictures = self._read(images)
        encoded = self.encode(prompt, pictures)
        self._check([encoded], options)
        return Prepared(encoded, self._pixels(pictures), _ms_since(start))

    def begin(
        self,
        prepared: Sequence[Prepared],
        options: Sequence[GenerationOptions],
        places: int | None = None,
    ) -> tuple[Started, list[Answer]]:
        """Run prompts together; the state of ``Started`` must be released.

        Args:
            prepared: requests, all of one ``size``.
            options: options of generation of each, all with one ``keep_factor``.
            places: most tokens of a prompt with its answer, if fewer than the model's positions.
        """
        pixels = [each.pixels for each in prepared if each.pixels is not None]
        prompts = [each.prompt for each in prepared]
        started, kept = self._prefill(
            prompts,
            np.concatenate(pixels) if pixels else None,
            options[0],
            max(each.prepare_ms for each in prepared),
        )
        answers = [
            self._answer(prompt, kept, row, chosen, places)
            for row, (prompt, chosen) in enumerate(zip(prompts, options, strict=True))
        ]
        return started, answers

    @property
    def tokenizer(self) -> ArtifactTokenizer:
        """The tokenizer of the artifact."""
        return self._prompts.tokenizer

    @property
    def has_rows(self) -> bool:
        """Whether answers can run together (``rows``)."""
        return self._backend.rows(1, 1) is not None

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes of the caches of all layers for one token, if no layer drops it."""
        decoder = self.manifest.decoder
        size = 2 if self.manifest.precision == "float16" else 4
        return 2 * sum(decoder.num_key_value_heads) * decoder.head_dim * size

    def keep_images(self, max_bytes: int) -> SeenImages | None:
        """Keep the features of images that come again (see ``Backend.keep_images``)."""
        return self._backend.keep_images(max_bytes)

    def keep_prefixes(self, max_bytes: int) -> SeenPrefixes | None:
        """Keep the caches of prompts for those that begin alike (see ``Backend.keep_prefixes``)."""
        return self._backend.keep_prefixes(max_bytes)

    @property
    def takes_keep_factor(self) -> bool:
        """Whether another ``keep_factor`` than 1 can be asked for."""
        try:
            self._backend.check(RequestSize(1, 0, 1, 1), 2.0)
        except CompExportError:
            return False
        return True

    def rows(self, rows: int, places: int) -> Rows | None:
        """Caches for answers that run together (see ``Backend.rows``)."""
        return self._backend.rows(rows, places)

    def generate_batch(
        self,
        requests: Sequence[Request],
        options: GenerationOptions = DEFAULT_OPTIONS,
        batch_size: int = 16,
    ) -> list[Generation]:
        """Answer many questions, those of equal length together; answers come in the order of requests.

        The timings of an answer are those of its batch. Arguments and errors as for ``stream``.
        """
        prompts = [self.encode(prompt, images) for images, prompt in requests]
        groups: dict[tuple[int, int], list[int]] = {}
        for index, prompt in enumerate(prompts):
            groups.setdefault((prompt.length, prompt.vision.size), []).append(index)
        answers: dict[int, Generation] = {}
        for members in groups.values():
            for first in range(0, len(members), batch_size):
                rows = members[first : first + batch_size]
                images = [image for row in rows for image in requests[row][0]]
                self._check([prompts[row] for row in rows], options)
                batch = self._batch([prompts[row] for row in rows], images, options, rows)
                answers.update(zip(rows, batch, strict=True))
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
        started, kept = self._prefill(prompts, pixels, options, prepare_ms)
        answers = [self._answer(p, kept, row, options) for row, p in enumerate(prompts)]
        return answer_in_step(answers, started, options, streams)

    def render(self, prompt: str, images: int) -> str:
        """The prompt in the checkpoint's template; arguments and errors as for ``stream``."""
        return self._prompts.render(prompt, images)

    def encode(
        self, prompt: str | Sequence[Message], images: Sequence[ImageSource]
    ) -> EncodedPrompt:
        """The prompt's tokens, with image tokens expanded; arguments and errors as for ``prepare``."""
        tiles = self.manifest.image_processor.tiles
        grids = []
        if tiles is not None:
            grids = [grid_of(*read_image(image).size, tiles) for image in images]
        return self._prompts.encode(prompt, len(images), grids)

    def _read(self, images: Sequence[ImageSource]) -> Sequence[ImageSource]:
        """The pictures, read once where both their sizes and their pixels are needed."""
        if self.manifest.image_processor.tiles is None:
            return images
        return [read_image(image) for image in images]

    def _pixels(self, images: Sequence[ImageSource]) -> NDArray[np.float32] | None:
        return preprocess(images, self.manifest.image_processor) if images else None

    def next_token_logits(self, images: Sequence[ImageSource], prompt: str) -> NDArray[np.float32]:
        """Logits ``[V]`` of the first token of an answer. Arguments and errors as for ``stream``."""
        encoded = self.encode(prompt, images)
        self._check([encoded], DEFAULT_OPTIONS)
        started, _ = self._prefill([encoded], self._pixels(images), DEFAULT_OPTIONS, 0.0)
        started.release(started.state)
        return started.logits[0]

    def _prefill(
        self,
        prompts: Sequence[EncodedPrompt],
        pixels: NDArray[np.float32] | None,
        options: GenerationOptions,
        prepare_ms: float,
    ) -> tuple[Started, "_Kept"]:
        """Run the prompts; also return what was kept."""
        start = perf_counter()
        backend = self._backend
        prefill = backend.prefill(
            pixels,
            np.stack([prompt.input_ids for prompt in prompts]),  # [B, N]
            np.stack([prompt.vision for prompt in prompts]),  # [B, Nv]
            np.stack([prompt.text for prompt in prompts]),  # [B, Nt]
            options.keep_factor,
        )
        rest_ms = _ms_since(start) - prefill.vision_ms
        timings = Timings(prepare_ms, prefill.vision_ms, rest_ms)
        precision = self.manifest.precision
        started = Started(
            prefill.logits, prefill.state, backend.step, backend.release, timings, precision
        )
        return started, _Kept(prefill.kept, prefill.selected, prefill.cached_tokens)

    def _check(self, prompts: Sequence[EncodedPrompt], options: GenerationOptions) -> None:
        """Refuse a batch of prompts that the backend cannot run."""
        text_tokens = max(prompt.text.size for prompt in prompts)
        images = max(sum(prompt.tiles) for prompt in prompts)
        size = RequestSize(len(prompts), images, int(text_tokens), options.max_new_tokens)
        self._backend.check(size, options.keep_factor)

    def _answer(
        self,
        prompt: EncodedPrompt,
        kept: "_Kept",
        row: int,
        options: GenerationOptions,
        places: int | None = None,
    ) -> Answer:
        manifest = self.manifest
        positions = manifest.decoder.max_position_embeddings
        images = prompt.pictures
        request = AnswerRequest(
            prompt_tokens=prompt.length,
            image_tokens=int(prompt.vision.size),
            kept=KeptTokens(
                {m: places[row] for m, places in kept.places.items()},
                images,
                prompt.length,
                kept.selected_of(row, len(images), manifest.vision.tower_tokens),
            ),
            ends=manifest.tokens.eos_token_ids,
            room=min(positions, places or positions) - prompt.length,
            cached_tokens=kept.cached,
        )
        return Answer(self._prompts.tokenizer, request, options)


@dataclass(frozen=True)
class _Kept:
    """The kept tokens of a prefill: positions ``[B, k]`` by drop place, tower tokens ``[I, k]``.

    ``cached`` tokens of the prompt were not read again.
    """

    places: dict[int, NDArray[np.int64]]
    selected: NDArray[np.int64] | None
    cached: int

    def selected_of(self, row: int, images: int, tower_tokens: int) -> SelectedTokens | None:
        """The selected tokens of one prompt, with ``images`` images each."""
        if self.selected is None:
            return None
        rows = self.selected[row * images : (row + 1) * images]
        return SelectedTokens(tuple(rows), tower_tokens)


def _native(
    path: Path, device: str, provider: str, backend: BackendName, check_hashes: bool
) -> Backend:
    """Load the engines of a directory. Only this function imports TensorRT."""
    from serve.backends.llava_tensorrt import TensorRTBackend

    check_native(path, device, provider, backend)
    return TensorRTBackend.load(path, check_hashes)


def _ms_since(start: float) -> float:
    return (perf_counter() - start) * 1000
