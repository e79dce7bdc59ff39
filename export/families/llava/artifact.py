"""Describe a LLaVA export: its graphs, and its manifest fields."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from comp.checkpoints.image_processor import read_image_processing
from comp.checkpoints.image_prompt import PROMPTS, ImagePrompt
from comp.checkpoints.llava_tensors import check_llava
from comp.checkpoints.tiling import Grid
from comp.checkpoints.tying import EMBEDDING, LM_HEAD
from comp.errors import CompExportError
from comp.flops.llava import llava_macs
from comp.plan import PruningPlan, Workload
from export.artifact.llava_manifest import (
    DecoderShape,
    LlavaManifest,
    SpecialTokens,
    VisionShape,
    graphs_of,
)
from export.configs.chat_template import read_chat_template
from export.configs.llava import LlavaShape, llava_of
from export.configs.special_tokens import read_special_tokens
from export.configs.tokenizer import CheckpointTokenizer, read_tokenizer
from export.families.contribution import FamilyExport
from export.families.llava.decoder import build_graphs
from export.graph.builder import Target
from export.weights.checkpoint import CheckpointWeights, WeightSource
from export.weights.slim import slim_weights

TEXT_TOKENS = 64  # of the workload, if there is no plan


def llava_artifact(
    checkpoint: Path,
    config: dict[str, Any],
    target: Target,
    plan: PruningPlan | None,
    workload: Workload | None,
) -> FamilyExport:
    """See ``export.families.contribution``."""
    shape = llava_of(config, str(checkpoint))
    weights: WeightSource
    if plan is None:
        check_llava(checkpoint, config)
        weights = CheckpointWeights(checkpoint)
    else:
        weights = slim_weights(checkpoint, plan)
        shape = shape.pruned(plan)
    tokenizer = read_tokenizer(checkpoint)
    tokens = read_special_tokens(checkpoint, config, shape.image_token_id, tokenizer)
    stored = set(weights.names())
    sizes = replace(shape.sizes, tie_word_embeddings=not {LM_HEAD, EMBEDDING} <= stored)
    on = workload or Workload(image_tokens=sizes.all_image_tokens, text_tokens=TEXT_TOKENS)
    report = llava_macs(sizes, on.image_tokens, on.text_tokens)
    return FamilyExport(
        manifest=LlavaManifest,
        graphs=graphs_of(target.flavour, target.precision),
        build=lambda out, written: build_graphs(shape, weights, target, out, written),
        fields={
            "decoder": _decoder_shape(shape),
            "vision": VisionShape(
                image_size=sizes.vision.image_size,
                patch_size=sizes.vision.patch_size,
                num_channels=sizes.vision.num_channels,
                image_tokens=sizes.image_tokens,
                select_strategy="full" if sizes.keeps_class_token else "default",
                shuffle=sizes.connector.shuffle,
                selection=sizes.image_selection,
            ),
            "image_prompt": _image_prompt(shape.family, checkpoint, tokens, tokenizer),
            "tokens": tokens,
            "chat_template": read_chat_template(checkpoint, tokens.image_token, tokenizer),
        },
        drops=sizes.drops,
        params=report.params,
        macs={name: part.macs for name, part in report.parts.items()},
        workload=on,
    )


def _image_prompt(
    family: str, checkpoint: Path, tokens: SpecialTokens, tokenizer: CheckpointTokenizer
) -> ImagePrompt | None:
    """The words around the tiles of a picture; ``None`` if pictures are not cut.

    Raises:
        CompExportError: the tokenizer does not know a word.
    """
    prompt = PROMPTS.get(family)
    if prompt is None or read_image_processing(checkpoint).tiles is None:
        return None
    for word in prompt.words(Grid(1, 1)):
        if len(tokenizer.tokenizer.encode(word, add_special_tokens=False).ids) != 1:
            raise CompExportError(
                f"the tokenizer of {checkpoint} does not read {word!r} as one token, and prompts hold it for "
                f"each tile of a picture beside {tokens.image_token}: take its files from the same checkpoint"
            )
    return prompt


def _decoder_shape(shape: LlavaShape) -> DecoderShape:
    text = shape.sizes.text
    return DecoderShape(
        num_layers=len(text.blocks),
        hidden_size=text.hidden_size,
        head_dim=text.head_dim,
        num_attention_heads=tuple(groups * text.group_size for groups in text.heads),
        num_key_value_heads=text.heads,
        intermediate_size=text.channels,
        vocab_size=text.vocab_size,
        max_position_embeddings=shape.max_position_embeddings,
        drops=shape.sizes.drops,
    )
