"""Each family for the trials: a checkpoint, the product's answers, transformers' answers."""

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

QUESTIONS = ("what is at the top?", "how many animals are there?")
NEW_TOKENS = 5
Answers = tuple[tuple[float, ...], ...]  # of each question: numbers of its own kind


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        make: writes a checkpoint.
        product_answers: returns the answers of an artifact's engine for a picture's file.
        right: returns transformers' answers of a checkpoint for a picture, after a function has
            changed the model.
        layers: returns the attention and FFN output weights of each block, by part, of
            transformers' model.
    """

    make: Callable[[Path], None]
    product_answers: Callable[[Path, Path], Answers]
    right: Callable[[Path, Any, Callable[[Any], None]], Answers]
    layers: Callable[[Any, str], list[tuple[Any, Any]]]


def quiet_libraries() -> None:
    """Silence transformers and warnings."""
    from transformers.utils import logging as of_transformers

    of_transformers.set_verbosity(logging.CRITICAL)
    of_transformers.disable_progress_bar()
    warnings.simplefilter("ignore")


def _make_llava(folder: Path) -> None:
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    from comp.tiny_models.tiny_tokenizer import build_tokenizer
    from tests.serve.random_llava import PATCH, SIDE, random_llava

    tokenizer = build_tokenizer()
    images = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    random_llava(tokenizer).save_pretrained(folder)
    processor.save_pretrained(folder)


def llava_answers(engine: Any, picture: Path, question: str, images: int = 1) -> tuple[int, ...]:
    """Tokens of the prompt, and those of the answer."""
    from serve.generation.options import GenerationOptions

    options = GenerationOptions(max_new_tokens=NEW_TOKENS)
    done = engine.generate([picture] * images, question, options)
    return done.prompt_tokens, *done.token_ids


def _generated(model: Any, inputs: Any, start: int) -> tuple[int, ...]:
    """Greedy tokens from a place on, up to the end of the answer.

    Raises:
        ArithmeticError: numbers are not finite: there is no answer.
    """
    import torch

    with torch.no_grad():
        result = model.generate(
            **inputs,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    if not all(step.isfinite().all() for step in result.logits):
        raise ArithmeticError("logits are not finite: there is no answer")
    tokens = result.sequences[0, start:].tolist()
    stops = model.generation_config.eos_token_id
    stops = {stops} if isinstance(stops, int) else set(stops or ())
    until = next((place for place, token in enumerate(tokens) if token in stops), len(tokens))
    return tuple(tokens[:until])


class LlavaReference:
    """A LLaVA loaded and run by transformers itself."""

    def __init__(self, checkpoint: Path) -> None:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.model = AutoModelForImageTextToText.from_pretrained(
            checkpoint, dtype=torch.float32, local_files_only=True
        ).eval()
        self.processor = AutoProcessor.from_pretrained(checkpoint, local_files_only=True)

    def answers(self, picture: Any, question: str, images: int = 1, marked: bool = False) -> Any:
        """Answer as ``llava_answers``; ``marked``: the question places its images itself."""
        content = [{"type": "image"}] * (0 if marked else images)
        content.append({"type": "text", "text": question})
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        inputs = self.processor(text=text, images=[picture] * images or None, return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        return length, *_generated(self.model, inputs, length)


def _llava_answers(artifact: Path, picture: Path) -> Answers:
    from serve.engines.llava import Engine

    engine = Engine.load(artifact, device="cpu", threads=1)
    return tuple(llava_answers(engine, picture, question) for question in QUESTIONS)


def _llava_right(checkpoint: Path, picture: Any, change: Callable[[Any], None]) -> Answers:
    result = LlavaReference(checkpoint)
    change(result.model)
    return tuple(result.answers(picture, question) for question in QUESTIONS)


def _llava_layers(model: Any, part: str) -> list[tuple[Any, Any]]:
    assert part == "language"
    layers = model.model.language_model.layers
    return [(each.self_attn.o_proj.weight, each.mlp.down_proj.weight) for each in layers]


def _make_clip(folder: Path) -> None:
    from tests.comp.small_clip import random_clip

    random_clip(2).save(folder)


def _clip_answers(artifact: Path, picture: Path) -> Answers:
    from serve.loading import load_engine

    ranking = load_engine(artifact, device="cpu", threads=1).rank([picture], QUESTIONS)  # type: ignore[union-attr]
    return tuple((float(score),) for score in ranking.of_texts[0])


def _clip_right(checkpoint: Path, picture: Any, change: Callable[[Any], None]) -> Answers:
    import torch
    from transformers import AutoModel, AutoProcessor

    model = AutoModel.from_pretrained(checkpoint, dtype=torch.float32, local_files_only=True)
    processor = AutoProcessor.from_pretrained(checkpoint, local_files_only=True)
    change(model.eval())
    inputs = processor(text=list(QUESTIONS), images=[picture], return_tensors="pt", padding=True)
    with torch.no_grad():
        scores = model(**inputs).logits_per_image[0]
    if not scores.isfinite().all():
        raise ArithmeticError("scores are not finite: there is no answer")
    return tuple((float(score),) for score in scores)


def _clip_layers(model: Any, part: str) -> list[tuple[Any, Any]]:
    tower = model.vision_model if part == "vision" else model.text_model
    return [(each.self_attn.out_proj.weight, each.mlp.fc2.weight) for each in tower.encoder.layers]


def _make_blip(folder: Path) -> None:
    from tests.comp.small_blip import random_blip

    random_blip("question", seed=5).save(folder)


def _blip_answers(artifact: Path, picture: Path) -> Answers:
    from serve.loading import load_engine

    engine = load_engine(artifact, device="cpu", threads=1)
    return tuple(llava_answers(engine, picture, question) for question in QUESTIONS)


def _blip_right(checkpoint: Path, picture: Any, change: Callable[[Any], None]) -> Answers:
    import torch
    from transformers import AutoModelForVisualQuestionAnswering, AutoProcessor

    model = AutoModelForVisualQuestionAnswering.from_pretrained(
        checkpoint, dtype=torch.float32, local_files_only=True
    ).eval()
    processor = AutoProcessor.from_pretrained(checkpoint, local_files_only=True)
    change(model)
    answers = []
    for question in QUESTIONS:
        inputs = processor(images=picture, text=question, return_tensors="pt")
        with torch.no_grad():
            tokens = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)[0, 1:]
        stop = model.config.text_config.sep_token_id
        kept = [token for token in tokens.tolist() if token != stop]
        answers.append((inputs["input_ids"].shape[1], *kept))
    return tuple(answers)


def _no_layers(model: Any, part: str) -> list[tuple[Any, Any]]:
    raise LookupError(f"no plan is made for {part} of this family")


FAMILIES: dict[str, Family] = {
    "llava": Family(_make_llava, _llava_answers, _llava_right, _llava_layers),
    "clip": Family(_make_clip, _clip_answers, _clip_right, _clip_layers),
    "blip": Family(_make_blip, _blip_answers, _blip_right, _no_layers),
}


def agree(result: Any, right: Any) -> bool:
    """Whether answers are the same: token ids exactly, scores within a thousandth."""
    if not isinstance(result, tuple) or not isinstance(right, tuple):
        return bool(result == right)
    if len(result) != len(right):
        return False
    pairs = zip(result, right, strict=True)
    return all(
        agree(one, other)
        if isinstance(one, tuple)
        else abs(one - other) <= 1e-3 * max(1.0, abs(other)) * isinstance(one, float)
        for one, other in pairs
    )
