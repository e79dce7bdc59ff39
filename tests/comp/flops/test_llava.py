"""The counter against published figures, an independent count by hooks, and transformers itself."""

import json
from dataclasses import replace
from importlib.resources import files

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from comp.checkpoints.llava_shape import ModelShape, read_shape
from comp.checkpoints.shapes import BlockSize, TowerShape
from comp.errors import CompExportError
from comp.flops.block import LAYER_NORM, block_macs, tower_macs
from comp.flops.llava import (
    image_count,
    keep_ratios,
    llava_macs,
    llava_macs_of_counts,
    llava_params,
    token_counts,
)
from comp.plan import BlockPlan, DropPlan, PruningPlan, Workload

VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 7,
}
TEXT = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}


def config(**changes: object) -> LlavaConfig:
    return LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION), text_config=LlamaConfig(**TEXT), **changes
    )


def small(**changes: object) -> ModelShape:
    return ModelShape.from_config(config(**changes).to_dict())


def tower(hidden_size: int, layers: int, image_size: int, patch_size: int) -> TowerShape:
    block = BlockSize(hidden_size // 64, 4 * hidden_size)
    return TowerShape(
        hidden_size=hidden_size,
        head_dim=64,
        blocks=(block,) * layers,
        image_size=image_size,
        patch_size=patch_size,
    )


def drops(*places: tuple[int, float, float]) -> tuple[DropPlan, ...]:
    return tuple(
        DropPlan(after_layer=place, vision_keep_ratio=vision, text_keep_ratio=text)
        for place, vision, text in places
    )


def plan_of(shape: ModelShape, heads: list[int], channels: list[int]) -> PruningPlan:
    blocks = tuple(
        BlockPlan(
            part="language",
            index=layer,
            num_attention_heads=shape.text.heads[layer] * shape.text.group_size,
            num_key_value_heads=shape.text.heads[layer],
            intermediate_size=shape.text.channels[layer],
            kept_key_value_heads=tuple(range(heads[layer])),
            kept_channels=tuple(range(channels[layer])),
        )
        for layer in range(shape.num_layers)
    )
    return PruningPlan(
        family="llava",
        model="x",
        method="comp",
        rate=0.5,
        workload=Workload(image_tokens=16, text_tokens=5),
        macs_dense=2,
        macs=1,
        blocks=blocks,
        drops=drops((2, 0.5, 0.8)),
    )


def test_llava_7b_language_model_on_576_image_tokens() -> None:
    report = llava_macs(read_shape("llava-7b"), image_tokens=576, text_tokens=0)
    n, d, m = 576, 4096, 11008
    assert report.parts["language"].macs == 32 * (4 * n * d**2 + 2 * n**2 * d + 3 * n * d * m)
    assert report.parts["language"].macs / 1e12 == pytest.approx(3.817, abs=5e-4)


def test_llava_7b_with_pyramid_drop() -> None:
    shape = replace(read_shape("llava-7b"), drops=drops((8, 0.5, 1), (16, 0.5, 1), (24, 0.5, 1)))
    report = llava_macs(shape, image_tokens=576, text_tokens=0)
    assert [report.tokens_per_layer[layer] for layer in (0, 8, 16, 24)] == [576, 288, 144, 72]
    assert report.parts["language"].macs / 1e12 == pytest.approx(1.777, abs=5e-4)


def test_published_vision_transformers() -> None:
    # BLIP NLVR2 on two 384x384 images and a text, CLIP L/14@336 on one image: their towers.
    clip = tower_macs(tower(1024, layers=24, image_size=336, patch_size=14))
    projection = 1024 * 768
    assert (clip + projection) / 1e9 == pytest.approx(191.105, abs=1e-3)
    n, d, layers, patch = 577, 768, 12, 3 * 16**2
    formula = (n - 1) * patch * d
    formula += layers * (12 * n * d**2 + 2 * n**2 * d + 2 * LAYER_NORM * n * d) + LAYER_NORM * n * d
    assert tower_macs(tower(d, layers, image_size=384, patch_size=16)) == formula


@pytest.mark.parametrize("select", ["default", "full"])
@pytest.mark.parametrize("layer", [-1, -2, [-2, -1]])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_parameters_are_those_of_transformers(select, layer, tied, bias) -> None:
    text = LlamaConfig(**TEXT, tie_word_embeddings=tied, attention_bias=bias, mlp_bias=bias)
    made = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=text,
        vision_feature_layer=layer,
        vision_feature_select_strategy=select,
        multimodal_projector_bias=bias,
        tie_word_embeddings=tied,
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(made)
    model.tie_weights()
    shape = ModelShape.from_config(json.loads(made.to_json_string(use_diff=False)))
    assert sum(llava_params(shape).values()) == sum(p.numel() for p in model.parameters())


def test_macs_agree_with_a_count_of_every_matrix_product() -> None:
    made = config(vision_feature_layer=-2, image_seq_length=16, image_token_index=96)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(made).eval()
    model.set_attn_implementation("eager")
    shape, text_tokens = ModelShape.from_config(made.to_dict()), 5
    ids = torch.zeros(1, text_tokens, dtype=torch.long, device="meta")
    pixels = torch.zeros(1, 3, 28, 28, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        tower = model.model.vision_tower
        states = tower.pre_layrnorm(tower.embeddings(pixels))
        for layer in tower.encoder.layers[: shape.vision_used_layers]:
            states = layer(states, attention_mask=None)
            states = states[0] if isinstance(states, tuple) else states
        features = model.model.multi_modal_projector(states[:, 1:])
        words = model.model.language_model.embed_tokens(ids)
        embeds = torch.cat([features, words], 1)
        position = torch.zeros(1, embeds.shape[1], dtype=torch.long, device="meta")
        rotary = model.model.language_model.rotary_emb(embeds, position)
        for layer in model.model.language_model.layers:
            embeds = layer(embeds, attention_mask=None, position_embeddings=rotary)
            embeds = embeds[0] if isinstance(embeds, tuple) else embeds
        model.lm_head(embeds[:, -1:])
    products = counter.get_total_flops() // 2
    norms = (2 * shape.vision_used_layers + 1) * LAYER_NORM * 17 * 32
    report = llava_macs(shape, image_tokens=16, text_tokens=text_tokens)
    assert report.macs == products + norms


def test_tower_layers_after_the_feature_layer_are_counted_on_request_only() -> None:
    used, whole = (
        llava_macs(small(), 16, 4, whole_tower=whole).parts["vision"] for whole in (False, True)
    )
    assert whole.macs - used.macs == 17 * 32 * (4 * 32 + 2 * 17 + 2 * 48 + 2 * LAYER_NORM)
    assert whole.params == used.params


@given(st.integers(0, 700), st.integers(0, 100), st.integers(1, 1000), st.integers(1, 1000))
def test_tokens_are_dropped_at_each_place(image, text, vision_ratio, text_ratio) -> None:
    ratios = {1: (vision_ratio / 1000, text_ratio / 1000), 3: (vision_ratio / 1000, 1.0)}
    counts = token_counts(5, image, text, ratios)
    assert counts[0] == (image, text)
    once = -(-image * vision_ratio // 1000)
    assert counts[1] == counts[2] == (once, -(-text * text_ratio // 1000))
    assert counts[3] == counts[4] == (-(-once * vision_ratio // 1000), counts[1][1])


def test_block_of_fewer_heads_scales_its_attention() -> None:
    text = small().text
    whole, half = (block_macs(text, BlockSize(heads, 80), 10, 10) for heads in (4, 2))
    ffn = 3 * 10 * 64 * 80
    assert whole - ffn == 2 * 10 * 64 * (8 + 4) * 8 + 2 * 10 * 10 * 8 * 8
    assert half - ffn == (whole - ffn) // 2


def test_plan_counts_and_slim_config_agree() -> None:
    shape = small()
    heads, channels = [4, 2, 1, 3], [80, 16, 48, 64]
    plan = plan_of(shape, heads, channels)
    planned = llava_macs(shape, 16, 5, plan)
    pruning = {
        "language": {"num_key_value_heads": heads, "intermediate_size": channels},
        "drops": [drop.model_dump() for drop in plan.drops],
    }
    slim = ModelShape.from_config(
        config().to_dict() | {"model_type": "comp_llava", "pruning": pruning}
    )
    assert slim == shape.with_plan(plan)
    assert llava_macs(slim, 16, 5) == planned
    counted = llava_macs_of_counts(
        shape,
        {("language", layer): count for layer, count in enumerate(heads)},
        {("language", layer): count for layer, count in enumerate(channels)},
        keep_ratios(plan.drops),
        plan.workload,
    )
    assert counted == planned.macs
    assert planned.macs < llava_macs(shape, 16, 5).macs
    assert planned.params < llava_macs(shape, 16, 5).params


def test_pruned_tower() -> None:
    shape = small()
    on = Workload(image_tokens=16, text_tokens=1)
    whole = llava_macs_of_counts(shape, {}, {}, {}, on)
    fewer = llava_macs_of_counts(shape, {("vision", 0): 2}, {("vision", 1): 16}, {}, on)
    attention = 17 * 16 * (4 * 32 + 2 * 17)
    assert whole - fewer == attention + 2 * 17 * 32 * 32
    unused = llava_macs_of_counts(shape, {("vision", 2): 1}, {}, {}, on)
    assert unused == whole


def test_images_are_counted_whole() -> None:
    shape = small()
    assert [image_count(shape, n) for n in (0, 1, 16, 17, 32)] == [0, 1, 1, 2, 2]
    none = llava_macs(shape, 0, 5).parts
    assert none["vision"].macs == none["projector"].macs == 0


def test_plan_of_another_model_is_refused() -> None:
    plan = plan_of(small(), [4] * 4, [80] * 4)
    with pytest.raises(CompExportError, match="pass the --model that the plan was made for"):
        llava_macs(read_shape("llava-7b"), 576, 1, plan)


@pytest.mark.parametrize(
    "section",
    [
        {},
        {"vision_config": {}},
        {"vision_config": {"hidden_size": 96}},
        {"text_config": {"vocab_size": 5, "num_hidden_layers": None}},
        {"text_config": {"num_attention_heads": 64, "hidden_size": 2048}},
        {"vision_feature_layer": 3},
        {"vision_feature_select_strategy": "full"},
    ],
)
def test_missing_keys_have_the_defaults_of_transformers(section) -> None:
    sparse = {"model_type": "llava", **section}
    text = {k: v for k, v in section.get("text_config", {}).items() if v is not None}
    full = LlavaConfig.from_dict(
        sparse | ({"text_config": {"model_type": "llama", **text}} if text else {})
    )
    assert ModelShape.from_config(sparse) == ModelShape.from_config(full.to_dict())


def test_packaged_configs_are_read_alike_by_transformers() -> None:
    for name in ("llava-7b", "llava-13b"):
        result = json.loads((files("comp") / "models" / "configs" / f"{name}.json").read_text())
        assert ModelShape.from_config(LlavaConfig.from_dict(result).to_dict()) == read_shape(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "blip"}, "model_type is 'blip', not one of llava"),
        ({"model_type": None}, "model_type is None"),
        (
            {"text_config": {"model_type": "gemma3_text"}},
            "text_config.model_type is 'gemma3_text': not one of llama, mistral, qwen2, qwen3",
        ),
        (
            {"vision_config": {"model_type": "pixtral"}},
            "vision_config.model_type is 'pixtral': not one of clip_vision_model, siglip_vision_model",
        ),
        (
            {"vision_config": {"model_type": "siglip_vision_model"}},
            "vision_feature_select_strategy is 'default', which leaves out the first token",
        ),
        ({"vision_feature_layer": 99}, "vision_feature_layer 99"),
        ({"vision_config": {"image_size": [2, 3]}}, "only square images"),
    ],
)
def test_other_models_are_refused_by_name(changes, message: str) -> None:
    with pytest.raises(CompExportError, match=message):
        ModelShape.from_config({"model_type": "llava"} | changes, "here")


def test_ranking_by_the_next_block_counts_the_keys_of_dropped_tokens() -> None:
    shape = read_shape("llava-7b")
    drops = [(8, 0.5), (16, 0.5), (24, 0.5)]
    macs = {}
    for ranking in ("received", "mean_head", "next_layer", "diversity"):
        planned = tuple(
            DropPlan(after_layer=m, vision_keep_ratio=v, text_keep_ratio=1.0, ranking=ranking)
            for m, v in drops
        )
        macs[ranking] = llava_macs(replace(shape, drops=planned), 576, 1).parts["language"].macs
    # Image tokens 576, 288, 144, 72: 288 + 144 + 72 are dropped, and each place has one query.
    d = 4096
    assert macs["next_layer"] - macs["received"] == (288 + 144 + 72 + 3) * d * d
    assert macs["received"] == macs["mean_head"] == macs["diversity"]
