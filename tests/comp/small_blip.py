"""Small random BLIPs of the four tasks, their examples, and random plans for them."""

import numpy as np
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipTextConfig,
    BlipVisionConfig,
)

from comp.data.emoji_scenes.captions import CaptionExamples
from comp.data.emoji_scenes.examples import EmojiScenes
from comp.data.emoji_scenes.statements import EmojiStatements
from comp.families.blip.nlvr import BlipForNlvr2, BlipNlvrConfig
from comp.families.blip.retrieval import BlipRetrieval
from comp.families.blip.tasks import BlipCaptions, BlipQuestions, BlipStatements
from comp.plan import BlockPlan, DropPlan, PruningPlan, Workload
from comp.tiny_models.tiny_blip import blip_processor
from tests.comp.towers import shaken

WIDTH, HEADS, LAYERS, FFN, SEEN = 32, 4, 3, 48, 145
PROCESSOR = blip_processor()
CLASSES = {
    "question": (BlipQuestions, BlipForQuestionAnswering, EmojiScenes),
    "caption": (BlipCaptions, BlipForConditionalGeneration, CaptionExamples),
    "retrieval": (BlipRetrieval, BlipForImageTextRetrieval, CaptionExamples),
    "statement": (BlipStatements, BlipForNlvr2, EmojiStatements),
}
TASKS = tuple(CLASSES)


def random_blip(task, seed=0, positions=64, width=WIDTH):
    """Return a BLIP with weights large enough that attention is not flat, and effective biases and norms."""
    tokenizer = PROCESSOR.tokenizer
    sizes = {
        "hidden_size": width,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
    }
    text = BlipTextConfig(
        vocab_size=len(tokenizer),
        encoder_hidden_size=width,
        max_position_embeddings=positions,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.sep_token_id,
        sep_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sizes,
    )
    vision = BlipVisionConfig(image_size=168, patch_size=14, **sizes)
    adapter, kind, _ = CLASSES[task]
    parts = {"text_config": text, "vision_config": vision}
    if task == "statement":
        model = kind(BlipNlvrConfig(**parts, merge_from_layer=1))
    else:
        model = kind(BlipConfig(**parts, image_text_hidden_size=24))
    shaken(model, seed, std=1.4)
    model.tie_weights()
    return adapter(model, PROCESSOR)


def examples_of(task, count, split="validation"):
    data = CLASSES[task][2](split, count)
    return [data[number] for number in range(count)]


def random_plan(adapter, seed=0, seen=0.7, read=0.7):
    """Return random heads and channels of every block; these shares of tokens are kept at every place."""
    rng = np.random.default_rng(seed)

    def some(of, least):
        return tuple(sorted(rng.permutation(of)[: rng.integers(least, of + 1)].tolist()))

    return PruningPlan(
        family="blip",
        task=adapter.task,
        model="tiny",
        method="test",
        rate=0.5,
        workload=Workload(image_tokens=SEEN * adapter.images, text_tokens=12),
        macs_dense=2,
        macs=1,
        blocks=tuple(
            BlockPlan(
                part=block.part,
                index=block.index,
                num_attention_heads=HEADS,
                num_key_value_heads=HEADS,
                intermediate_size=block.intermediate_size,
                kept_key_value_heads=some(HEADS, 1),
                kept_channels=some(FFN, 4) if block.intermediate_size else (),
            )
            for block in adapter.blocks
        ),
        drops=tuple(
            DropPlan(
                part=part,
                after_layer=layer,
                vision_keep_ratio=seen if part == "vision" else 1.0,
                text_keep_ratio=read if part == "language" else 1.0,
            )
            for part, layer in adapter.drop_places
        ),
    )
