"""torch's contestants: transformers' dense model and the project's slim one, on one device."""

import os
from collections.abc import Callable
from time import perf_counter
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor
from transformers.cache_utils import DynamicCache, StaticCache
from transformers.utils import logging

from comp.errors import CompExportError
from comp.families.image_processor import load_image_processor
from comp.families.llava.decoder import DecoderCache, DecoderOptions
from comp.families.llava.forward import IGNORE, LlavaBatch, answer_step, prompt_kinds, run_llava
from comp.families.llava.slim import CompLlavaForConditionalGeneration
from rivals.base import Answered, Answerer, BenchSettings, Loaded
from run_files import RunFiles, Which

COMPILE_MODES = ("reduce-overhead", "default")
COMPILED_TRIES = (
    3  # answers before a mode counts as working: CUDA graphs are recorded at the second
)


class Decoding(Protocol):
    """A model with its cache: one prompt, then one token at a time."""

    def begin(self) -> None:
        """Clear the cache; not timed."""
        ...

    def prefill(self, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
        """``input_ids [1, N]``, ``pixel_values [1, 3, H, W]`` to the logits ``[1, V]``."""
        ...

    def step(self, token: Tensor) -> Tensor:
        """``token [1]`` to the logits ``[1, V]`` of the next."""
        ...


class TorchModels:
    """Both models, loaded when first used, in half precision on a GPU and single precision on a CPU."""

    def __init__(
        self, files: RunFiles, settings: BenchSettings, precision: str | None = None
    ) -> None:
        """``precision`` overrides the files' precision."""
        torch.set_num_threads(settings.threads)
        logging.disable_progress_bar()
        # As transformers (seen: 5.23) advises for production: a check of the image tokens splits
        # compiled graphs.
        os.environ.setdefault("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")
        self._files = files
        self._settings = settings
        self._dtype = getattr(torch, precision or files.precision)
        self._dense: LlavaForConditionalGeneration | None = None
        self._processor = processor_of(files)

    def eager(self, which: Which) -> Loaded:
        if which == "dense":
            model = self._dense_model()
            notes = {"attention": model.config.text_config._attn_implementation}
            return Loaded(self._answerer(DenseDecoding(model)), self._notes(notes))
        directory = self._files.checkpoint("compressed")
        slim = CompLlavaForConditionalGeneration.from_pretrained(
            directory, dtype=self._dtype, device_map=self._settings.device
        ).eval()
        self._files.loaded(directory)
        return Loaded(self._answerer(SlimDecoding(slim)), self._notes({"attention": "sdpa"}))

    def compiled(self) -> Loaded:
        """The dense model, each phase in the first mode of ``COMPILE_MODES`` that works.

        Raises:
            CompExportError: a phase works in none; quotes torch's errors.
        """
        model, settings = self._dense_model(), self._settings
        length = self._files.plan.workload.image_tokens + self._files.plan.workload.text_tokens
        decoding = StaticDecoding(model, length + settings.new_tokens)
        answer = self._answerer(decoding)
        side = model.config.vision_config.image_size
        blank = Image.new("RGB", (side, side))
        # transformers (seen: 5.23) hangs its hooks into the model when it is first run; traced, that
        # splits graphs.
        self._answerer(DenseDecoding(model))(blank)
        tried = 0
        while tried < COMPILED_TRIES:
            try:
                answer(blank)
                tried += 1
            except PhaseError as failed:
                failed.phase.next_mode(failed.reason)
                tried = 0
        phases = (decoding.prefill_phase, decoding.step_phase)
        return Loaded(answer, self._notes({phase.name: phase.notes() for phase in phases}))

    def _notes(self, more: dict[str, Any]) -> dict[str, Any]:
        import transformers

        return {"torch": torch.__version__, "transformers": transformers.__version__, **more}

    def _dense_model(self) -> LlavaForConditionalGeneration:
        if self._dense is None:
            self._dense = LlavaForConditionalGeneration.from_pretrained(
                self._files.checkpoint(),
                dtype=self._dtype,
                attn_implementation="sdpa",
                device_map=self._settings.device,
            ).eval()
        return self._dense

    def _answerer(self, decoding: Decoding) -> Answerer:
        settings, processor, dtype = self._settings, self._processor, self._dtype
        text = prompt_text(processor, settings.prompt)

        @torch.no_grad()
        def answer(image: Image.Image) -> Answered:
            decoding.begin()
            if settings.device == "cuda":
                torch.cuda.synchronize()  # earlier work is not timed
            start = perf_counter()
            inputs = processor(images=image, text=text, return_tensors="pt")
            prepared = perf_counter()
            pixels = inputs["pixel_values"].to(settings.device, dtype)
            token = decoding.prefill(inputs["input_ids"].to(settings.device), pixels).argmax(-1)
            tokens = [int(token)]  # waits for the GPU
            first = perf_counter()
            while len(tokens) < settings.new_tokens:
                token = decoding.step(token).argmax(-1)
                tokens.append(int(token))  # a caller that streams reads every token
            end = perf_counter()
            return Answered(
                prepare_ms=(prepared - start) * 1000,
                ttft_ms=(first - start) * 1000,
                decode_ms=(end - first) * 1000,
                prompt_tokens=inputs["input_ids"].shape[1],
                token_ids=tuple(tokens),
            )

        return answer


class DenseDecoding:
    """transformers' model with its growing cache."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        self._model = model
        self._cache: Any = None

    def begin(self) -> None:
        self._cache = DynamicCache(config=self._model.config)

    def prefill(self, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
        return _forward(self._model, input_ids, self._cache, pixel_values)

    def step(self, token: Tensor) -> Tensor:
        return _forward(self._model, token[:, None], self._cache)


class SlimDecoding:
    """The project's slim model: tokens are dropped in the prefill, caches grow."""

    def __init__(self, model: CompLlavaForConditionalGeneration) -> None:
        self._model = model
        self._options = model.decoder_options()
        self._cache = DecoderCache()

    def begin(self) -> None:
        self._cache = DecoderCache()

    def prefill(self, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
        batch = LlavaBatch(
            pixel_values=pixel_values,
            input_ids=input_ids,
            kind=prompt_kinds(input_ids, self._model.config.image_token_id),
            alive=torch.ones(input_ids.shape, device=input_ids.device),
            query=torch.full((1,), input_ids.shape[1] - 1, device=input_ids.device),
            labels=torch.full_like(input_ids, IGNORE),
        )
        output = run_llava(self._model, batch, self._options, self._cache)
        return self._model.lm_head(output.tokens.states[:, -1])

    def step(self, token: Tensor) -> Tensor:
        return answer_step(self._model, token, DecoderOptions(), self._cache)


class StaticDecoding:
    """transformers' model with a cache of fixed size; both phases are compiled."""

    def __init__(self, model: LlavaForConditionalGeneration, length: int) -> None:
        text = model.config.text_config
        self._cache = StaticCache(config=model.config, max_cache_len=length)
        # Allocated before tracing, so that CUDA graphs can write it in place.
        self._cache.early_initialization(
            1, text.num_key_value_heads, text.head_dim, model.dtype, model.device
        )

        def prefill(input_ids: Tensor, pixel_values: Tensor) -> Tensor:
            return _forward(model, input_ids, self._cache, pixel_values)

        def step(token: Tensor) -> Tensor:
            return _forward(model, token[:, None], self._cache)

        self.prefill_phase = Phase("prefill", prefill)
        self.step_phase = Phase("step", step)

    def begin(self) -> None:
        self._cache.reset()

    def prefill(self, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
        return self.prefill_phase(input_ids, pixel_values)

    def step(self, token: Tensor) -> Tensor:
        return self.step_phase(token)


class Phase:
    """A function compiled in one of ``COMPILE_MODES``."""

    def __init__(self, name: str, function: Callable[..., Tensor]) -> None:
        self.name = name
        self._function = function
        self._modes = list(COMPILE_MODES)
        self._failed: dict[str, str] = {}
        self._compile()

    def __call__(self, *tensors: Tensor) -> Tensor:
        try:
            torch.compiler.cudagraph_mark_step_begin()
            return self._compiled(*tensors)
        except Exception as error:  # the compiler's own, the C++ compiler's, CUDA's
            raise PhaseError(self, f"{type(error).__name__}: {error}") from error

    def next_mode(self, reason: str) -> None:
        """Switch to the next mode.

        Raises:
            CompExportError: there is none.
        """
        self._failed[self._modes.pop(0)] = " ".join(reason.split())[:300]
        if not self._modes:
            reasons = "; ".join(f"{mode}: {why}" for mode, why in self._failed.items())
            raise CompExportError(f"torch.compile of the {self.name} fails: {reasons}")
        self._compile()

    def notes(self) -> dict[str, Any]:
        return {"mode": self._modes[0], "failed": self._failed}

    def _compile(self) -> None:
        self._compiled = torch.compile(self._function, mode=self._modes[0], dynamic=False)


class PhaseError(Exception):
    """A compiled phase failed."""

    def __init__(self, phase: Phase, reason: str) -> None:
        super().__init__(reason)
        self.phase, self.reason = phase, reason


def _forward(
    model: LlavaForConditionalGeneration,
    input_ids: Tensor,
    cache: Any,
    pixel_values: Tensor | None = None,
) -> Tensor:
    """Logits ``[1, V]`` of the last token."""
    output = model(
        input_ids=input_ids,
        pixel_values=pixel_values,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return output.logits[:, -1]


def processor_of(files: RunFiles) -> LlavaProcessor:
    """Image and text preprocessing of transformers."""
    processor = LlavaProcessor.from_pretrained(files.checkpoint())
    processor.image_processor = load_image_processor(files.checkpoint())
    return processor


def prompt_text(processor: LlavaProcessor, prompt: str) -> str:
    """A question about an image in the model's chat template."""
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
