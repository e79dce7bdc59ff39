"""A BLIP without heads and channels computes what the masked one does."""

import copy

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from transformers import BlipConfig, BlipForQuestionAnswering, BlipTextConfig, BlipVisionConfig

from comp.checkpoints.blip_slices import BlipCuts
from comp.families.blip.nlvr import BlipForNlvr2, BlipNlvrConfig
from comp.families.blip.text_forward import Memory, read, see
from comp.families.encoder.forward import EncoderOptions
from comp.masks import Masks
from comp.plan import BlockPlan, PruningPlan, Workload
from tests.comp.towers import shaken

WIDTH, HEADS, LAYERS, FFN = 32, 4, 2, 40
HEAD_DIM = WIDTH // HEADS
SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
}
VISION = BlipVisionConfig(image_size=28, patch_size=14, **SIZES)
TEXT = BlipTextConfig(
    vocab_size=50,
    max_position_embeddings=12,
    encoder_hidden_size=WIDTH,
    bos_token_id=1,
    sep_token_id=2,
    **SIZES,
)


def plan_of(language, cross, seed):
    """Random blocks of all three parts; the last of each is left out, and stays whole."""
    rng = np.random.default_rng(seed)

    def some(of):
        return tuple(sorted(rng.permutation(of)[: rng.integers(1, of)].tolist()))

    blocks = tuple(
        BlockPlan(
            part=part,
            index=index,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            intermediate_size=channels,
            kept_key_value_heads=some(HEADS),
            kept_channels=some(channels) if channels else (),
        )
        for part, count, channels in (
            ("vision", LAYERS, FFN),
            ("language", language, FFN),
            ("cross", cross, 0),
        )
        for index in range(count - 1)
    )
    return PruningPlan(
        family="blip",
        model="tiny",
        method="test",
        rate=0.5,
        workload=Workload(image_tokens=5, text_tokens=7),
        macs_dense=2,
        macs=1,
        blocks=blocks,
    )


def masks_of(plan, language, cross):
    """The masks of a plan, with ones for the blocks that it does not name."""
    masks = Masks.from_plan(plan.blocks)
    for part, count in (("vision", LAYERS), ("language", language), ("cross", cross)):
        masks.heads.setdefault((part, count - 1), torch.ones(HEADS))
        masks.channels.setdefault((part, count - 1), torch.ones(FFN))
    return masks


def cut(model, cuts):
    """Return a copy whose linear layers have the kept sizes."""
    slim = copy.deepcopy(model)
    for name, module in slim.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        for kind, parameter in list(module.named_parameters(recurse=False)):
            result = cuts.of(f"{name}.{kind}")
            if result is not None:
                left = parameter.data.index_select(result.axis, torch.tensor(result.keep))
                setattr(module, kind, nn.Parameter(left))
        module.out_features, module.in_features = module.weight.shape
    return slim


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 50, (3, 7), generator=generator)
    return ids, torch.ones_like(ids), torch.randn(3, 2, 3, 28, 28, generator=generator)


@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_cut_equals_masked_for_two_images(batch, seed):
    config = BlipNlvrConfig(vision_config=VISION, text_config=TEXT, merge_from_layer=1)
    model = shaken(BlipForNlvr2(config), seed)
    plan = plan_of(LAYERS, 2 * LAYERS, seed)
    dims = {"vision": HEAD_DIM, "language": HEAD_DIM, "cross": HEAD_DIM}
    slim = cut(model, BlipCuts(plan, dims, LAYERS, branches=2))
    ids, mask, pixels = batch

    def run(of, masks):
        seen = [see(of.vision_model, pixels[:, n], EncoderOptions(masks)).states for n in (0, 1)]
        memories = [Memory.of_image(states) for states in seen]
        return read(of.text_encoder, ids, mask, memories, EncoderOptions(masks)).tokens.states

    masked, small = run(model, masks_of(plan, LAYERS, 2 * LAYERS)), run(slim, None)
    torch.testing.assert_close(small, masked, atol=2e-5, rtol=2e-5)
    assert (masked - run(model, None)).abs().max() > 0.1
    sizes = [sum(p.numel() for p in each.parameters()) for each in (model, slim)]
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_cut_equals_masked_for_questions_and_answers(batch, seed):
    """The decoder's blocks are counted on from the encoder's."""
    config = BlipConfig(vision_config=VISION.to_dict(), text_config=TEXT.to_dict())
    model = shaken(BlipForQuestionAnswering(config), seed)
    plan = plan_of(2 * LAYERS, 2 * LAYERS, seed)
    dims = {"vision": HEAD_DIM, "language": HEAD_DIM, "cross": HEAD_DIM}
    slim = cut(model, BlipCuts(plan, dims, LAYERS))
    ids, mask, pixels = batch

    def run(of, masks):
        image = Memory.of_image(see(of.vision_model, pixels[:, 0], EncoderOptions(masks)).states)
        encoded = read(of.text_encoder, ids, mask, [image], EncoderOptions(masks)).tokens
        options = EncoderOptions(masks)
        memory = Memory(encoded.states, encoded.alive)
        said = read(of.text_decoder.bert, ids, mask, [memory], options, causal=True, first=LAYERS)
        return said.tokens.states

    masked, small = run(model, masks_of(plan, 2 * LAYERS, 2 * LAYERS)), run(slim, None)
    torch.testing.assert_close(small, masked, atol=2e-5, rtol=2e-5)
    assert (masked - run(model, None)).abs().max() > 0.1


@pytest.mark.parametrize(
    ("part", "size", "kept"), [("cross", 8, (1,)), ("language", 0, ()), ("language", 8, ())]
)
def test_only_cross_attention_has_no_channels(part, size, kept):
    with pytest.raises(ValidationError, match="channel"):
        BlockPlan(
            part=part,
            index=0,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=size,
            kept_key_value_heads=(0,),
            kept_channels=kept,
        )
