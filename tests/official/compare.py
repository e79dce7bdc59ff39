"""transformers itself against the engine, on raw pictures and words."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import AutoProcessor

from serve.engines.llava_prompt import PromptEncoder
from serve.engines.preprocess import preprocess
from serve.generation.options import GenerationOptions
from serve.generation.results import TokenText
from tests.official.build import ANSWER, PICTURES, QUESTION, picture

PIXELS = 1e-5
NUMBERS = 2e-4  # of embeddings, and of logits a share of their largest
QUESTIONS = (QUESTION, " two  dogs:\nis this   a caffè ☕? ")
CAPTIONS = ("a red cat", "The DOG sitting, and 25 cats!", "caffè ☕ naïve 日本", "it's a cat ")


def pictures() -> list[Image.Image]:
    return [picture(*sizes) for sizes in PICTURES.values()]


def originals(checkpoint: Path, architecture: str) -> tuple[Any, Any]:
    """The model and the processor, as transformers loads them."""
    model = getattr(transformers, architecture).from_pretrained(checkpoint, dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(checkpoint)


def same_pixels(processor: Any, engine: Any) -> None:
    for each in pictures():
        theirs = processor.image_processor(images=[each], return_tensors="np")["pixel_values"]
        ours = preprocess([each], engine.manifest.image_processor)
        assert np.abs(ours - theirs).max() <= PIXELS


def same_answer(
    engine: Any, images: list[Image.Image], prompt: str, theirs: list[int], processor: Any, end: int
) -> bool:
    """Compare an answer with that of transformers; whether it ended."""
    options = GenerationOptions(max_new_tokens=ANSWER)
    events = engine.stream(images, prompt, options)
    ours = [event.token_id for event in events if isinstance(event, TokenText)]
    assert ours == theirs
    text = processor.decode(theirs, skip_special_tokens=True)
    assert engine.generate(images, prompt, options).text == text
    return end in theirs


@torch.no_grad()
def llava(model: Any, processor: Any, engine: Any, tokenizer: Path) -> None:
    encoder = PromptEncoder(engine.manifest, tokenizer)
    wide, *others = pictures()
    prompts = [([image], question) for image in (wide, *others) for question in QUESTIONS]
    ended = []
    for images, question in (*prompts, ([wide, *others], QUESTION), ([], QUESTION)):
        content = [{"type": "image"}] * len(images) + [{"type": "text", "text": question}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        given = processor(images=images or None, text=text, return_tensors="pt")
        ids = given["input_ids"][0].tolist()
        assert encoder.encode(question, len(images)).input_ids.tolist() == ids
        result = model.generate(**given, max_new_tokens=ANSWER, do_sample=False)
        theirs = result[0, len(ids) :].tolist()
        ended.append(same_answer(engine, images, question, theirs, processor, end=2))
    assert any(ended)


@torch.no_grad()
def blip_reader(model: Any, processor: Any, engine: Any, tokenizer: Path) -> None:
    ended = []
    for image in pictures():
        for question in QUESTIONS if engine.asks else ("", "a picture of"):
            prompts = {"text": question} if question else {}
            given = processor(images=[image], return_tensors="pt", **prompts)
            if engine.asks:
                assert (
                    engine.encode(question, "question").tolist() == given["input_ids"][0].tolist()
                )
            result = model.generate(**given, max_new_tokens=ANSWER, do_sample=False, num_beams=1)
            start = 1 if engine.asks or not question else given["input_ids"].shape[1] - 1
            theirs = result[0, start:].tolist()
            ended.append(same_answer(engine, [image], question, theirs, processor, end=102))
    assert any(ended)


@torch.no_grad()
def blip_retriever(model: Any, processor: Any, engine: Any, tokenizer: Path) -> None:
    for caption in CAPTIONS:
        given = processor(images=pictures(), text=[caption] * 3, return_tensors="pt")
        assert engine.encode(caption, "caption").tolist() == given["input_ids"][0].tolist()
        matching = model(**given).itm_score[:, 1].numpy()
        cosine = model(**given, use_itm_head=False)[0][:, 0].numpy()
        ours = engine.rank(pictures(), [caption]).of_texts[:, 0]
        assert np.abs(ours - (matching + cosine)).max() <= NUMBERS * max(1, np.abs(matching).max())


@torch.no_grad()
def clip(model: Any, processor: Any, engine: Any, tokenizer: Path) -> None:
    for caption in CAPTIONS:
        given = processor(images=pictures(), text=[caption], return_tensors="pt")
        assert engine.encode(caption, "caption").tolist() == given["input_ids"][0].tolist()
        result = model(**given)
        texts, images = engine.embed_texts([caption]), engine.embed_images(pictures())
        assert np.abs(texts.embeds - result.text_embeds.numpy()).max() <= NUMBERS
        assert np.abs(images.embeds - result.image_embeds.numpy()).max() <= NUMBERS
        ours = engine.rank(pictures(), [caption]).of_images
        theirs = result.logits_per_text.numpy()
        assert np.abs(ours - theirs).max() <= NUMBERS * max(1, np.abs(theirs).max())


COMPARISONS: dict[str, Callable[[Any, Any, Any, Path], None]] = {
    "LlavaForConditionalGeneration": llava,
    "BlipForConditionalGeneration": blip_reader,
    "BlipForQuestionAnswering": blip_reader,
    "BlipForImageTextRetrieval": blip_retriever,
    "CLIPModel": clip,
}
