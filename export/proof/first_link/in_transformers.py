"""Run a checkpoint in transformers: ``AutoProcessor`` and the Auto class.

Slim checkpoints load in the same way, because ``import comp`` registers their classes.
"""

import gc
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ImageOps

from comp.checkpoints.locate import read_config
from comp.plan import Task
from comp.registry.code import resolve
from comp.registry.families import family_called
from export.proof.first_link.memory import memory_lacking
from export.proof.first_link.reading import Outputs, Reading, Refused, images_in
from export.proof.first_link.request import Picture, Request
from export.proof.outputs import embedding, logits, similarity, statement, statement_logit

# The prompt of LLaVA-1.5's model card, for checkpoints without a chat template.
NO_TEMPLATE = "USER: {images}{words} ASSISTANT:"
NUDGE = 1e-6  # relative: the size of a rounding error in float32
# A tokenizer.json may contain padding and truncation settings that would cut prompts off.
WHOLE = {"padding": False, "truncation": False}
GREEDY = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1}


class InTransformers:
    """One checkpoint in transformers, in float32 (see ``export.proof.first_link.reading.Side``)."""

    def __init__(
        self,
        directory: Path,
        family: str,
        task: Task,
        name: str,
        device: str = "cpu",
        not_run: str = "",
    ) -> None:
        """Load the processor, and the model if memory suffices and ``not_run`` is empty.

        Raises:
            OSError, ValueError: transformers cannot load the checkpoint.
        """
        from transformers.utils import logging

        import comp  # noqa: F401  # registers slim checkpoints

        logging.disable_progress_bar()  # verify has its own
        self.name = name
        self._kind = family, task
        self.processor = _processor(directory, family)
        self.not_run = not_run or (memory_lacking(directory) if device == "cpu" else "")
        self._model = None if self.not_run else _load(directory, family, task).to(device)
        self._device = device

    def close(self) -> None:
        """Free the memory of the model."""
        self._model = None
        gc.collect()

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """Special tokens that a user may type by accident or on purpose."""
        tokenizer = self.processor.tokenizer
        wanted = (tokenizer.eos_token, tokenizer.bos_token, tokenizer.sep_token)
        image = getattr(self.processor, "image_token", None)
        return tuple(dict.fromkeys(token for token in (*wanted, image) if token))

    def read(self, request: Request, max_new_tokens: int, run: bool) -> Reading | Refused:
        # transformers refuses in many ways, internal errors included: all of them mean that there is no
        # answer to compare with.
        try:
            prompt, inputs = self._inputs(request)
            ids = inputs.get("input_ids")
            read = (
                np.zeros(0, np.int64) if ids is None else ids[0].numpy().copy()
            )  # BLIP changes them in place
            outputs = None
            if run and self._model is not None:
                with torch.inference_mode():
                    outputs = _ask(
                        self._kind,
                        self._model,
                        self.processor,
                        inputs,
                        max_new_tokens,
                        self._device,
                    )
        except Exception as error:
            return Refused(f"{type(error).__name__}: {_in_a_line(error)}")
        pixels = inputs.get("pixel_values")
        return Reading(
            input_ids=read,
            pixel_values=None if pixels is None else _images(pixels).float().numpy(),
            prompt=prompt,
            outputs=outputs,
        )

    def nudged(self, request: Request, max_new_tokens: int, seed: int) -> Reading | Refused:
        """As ``read``, with pixels and embeddings perturbed by up to a millionth of their size."""
        model = self._model
        assert model is not None
        generator = torch.Generator().manual_seed(seed)

        def moved(values: torch.Tensor) -> torch.Tensor:
            noise = torch.rand(values.shape, generator=generator) * 2 - 1
            return values * (1 + NUDGE * noise.to(values.device))

        tables = [each for each in model.modules() if isinstance(each, torch.nn.Embedding)]
        patches = [each for each in model.modules() if isinstance(each, torch.nn.Conv2d)]
        hooks = [
            each.register_forward_hook(lambda module, given, output: moved(output))
            for each in (*tables, *patches)
        ]
        try:
            return self.read(request, max_new_tokens, run=True)
        finally:
            for hook in hooks:
                hook.remove()

    def resized(self, images: tuple[Picture, ...]) -> list[NDArray[np.uint8]]:
        resized = self.processor.image_processor(
            [upright(image) for image in images], do_rescale=False, do_normalize=False
        )
        return [
            each.transpose(1, 2, 0).astype(np.uint8) for each in images_in(resized["pixel_values"])
        ]

    def _inputs(self, request: Request) -> tuple[str | None, Any]:
        """The prompt, if there is a template, and the processor's outputs."""
        images = [upright(image) for image in request.images]
        family, task = self._kind
        if _reads_image_tokens(family):
            return self._prompted(images, request.text)
        if task != "statement" and len(images) != 1:
            raise ValueError(f"{len(images)} images for a model that looks at one")
        words = {} if task == "caption" and not request.text.strip() else {"text": [request.text]}
        return None, self.processor(images=images, return_tensors="pt", **words, **WHOLE)

    def _prompted(self, images: list[Picture], words: str) -> tuple[str, Any]:
        if not getattr(self.processor, "chat_template", None):
            prompt = NO_TEMPLATE.format(images="<image>\n" * len(images), words=words)
            inputs = self.processor(
                images=images or None, text=prompt, return_tensors="pt", **WHOLE
            )
            return prompt, inputs
        content = [{"type": "image", "image": image} for image in images]
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": words}]}]
        prompt = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        inputs = self.processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=dict(WHOLE),  # transformers changes it
        )
        return prompt, inputs


def _images(pixel_values: torch.Tensor) -> torch.Tensor:
    """The images ``[I, C, S, S]`` of one prompt, which processors of tiles put into a batch."""
    return pixel_values.flatten(0, -4) if pixel_values.ndim > 4 else pixel_values


def _processor(directory: Path, family: str) -> Any:
    """Load the processor; Pillow is the reference, and torchvision rounds pixels differently."""
    known = family_called(family)
    if known is not None and known.load_processor is not None:
        return resolve(known.load_processor)(directory)
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(
        directory, backend="pil", local_files_only=True, trust_remote_code=False
    )


def upright(image: Picture) -> Picture:
    """Rotate a picture as ``transformers.image_utils.load_image`` does; its mode is kept."""
    return ImageOps.exif_transpose(image)


def _load(directory: Path, family: str, task: Task) -> Any:
    import transformers

    known = family_called(family)
    named = None if known is None else known.auto_models.get(task)
    if named is None:  # a class that no Auto class leads to: the one that config.json names
        named = (read_config(directory).get("architectures") or [""])[0]
    kind = getattr(transformers, named, None)
    if kind is None:
        from comp.families.blip import slim as slim_blip

        kind = getattr(slim_blip, named)
    model = kind.from_pretrained(
        directory,
        dtype=torch.float32,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
    )
    return model.eval()


def _reads_image_tokens(family: str) -> bool:
    known = family_called(family)
    return known is not None and known.reads_image_tokens


def _ask(
    kind: tuple[str, Task], model: Any, processor: Any, inputs: Any, limit: int, device: str
) -> Outputs:
    fed = {name: value.to(device) for name, value in inputs.items()}
    if _reads_image_tokens(kind[0]):
        ends = model.generation_config.eos_token_id
        return _generated(model, processor, fed, limit, ends, fed["input_ids"].shape[1])
    if kind[1] in ("question", "caption"):
        return _generated(model, processor, fed, limit, model.config.text_config.sep_token_id, None)
    if kind[1] == "statement":
        judged = model(fed["input_ids"], fed["pixel_values"][None], fed.get("attention_mask"))
        return Outputs({"logits": statement(_flat(judged.logits[0]))})
    if kind[0] == "clip":
        output = model(**fed)
        embeds = embedding(_flat(output.image_embeds[0]), _flat(output.text_embeds[0]))
        scores = similarity(_flat(output.logits_per_image), float(model.logit_scale.exp()))
        return Outputs({"embeddings": embeds, "scores": scores})
    cosine = model(**fed, use_itm_head=False)[0]
    matched = model(**fed, use_itm_head=True)[0]
    match = statement_logit(_flat(matched)[1:])
    return Outputs({"scores": similarity(_flat(cosine)), "logits": match})


def _generated(
    model: Any, processor: Any, fed: dict[str, Any], limit: int, ends: Any, prompt: int | None
) -> Outputs:
    """Generate a greedy answer.

    ``prompt``: number of tokens before it; ``None`` if ``generate`` adds its own first tokens or, for
    captions, starts with the given beginning.
    """
    generated = model.generate(
        **fed, **GREEDY, max_new_tokens=limit, output_logits=True, return_dict_in_generate=True
    )
    steps = [each[0].float() for each in generated.logits]
    row = generated.sequences[0]
    new = row[len(row) - len(steps) :] if prompt is None else row[prompt:]
    tokens = [int(token) for token in new]
    stops = set(ends if isinstance(ends, (list, tuple)) else [ends])
    ended = bool(tokens) and tokens[-1] in stops
    margins = [float(torch.topk(step, 2).values.diff().abs()) for step in steps]
    kept = tokens[:-1] if ended else tokens
    return Outputs(
        {"logits": logits(_flat(steps[0]))},
        tuple(kept),
        ended,
        processor.decode(kept, skip_special_tokens=True),
        tuple(margins),
    )


def _flat(values: torch.Tensor) -> NDArray[np.float32]:
    return values.detach().float().cpu().numpy().reshape(-1)


def _in_a_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or "no message"
