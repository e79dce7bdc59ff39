"""Parts of models: towers, connectors, decoders and the tensors of a checkpoint, against transformers."""

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig

from comp.checkpoints.decoder_shape import DECODERS, decoder_shape
from comp.checkpoints.llava_shape import ModelShape, config_of
from comp.checkpoints.llava_tensors import tensors_of
from comp.checkpoints.pruning_entry import PartSizes
from comp.checkpoints.tensor_names import canonical_name, name_in_torch
from comp.checkpoints.tower_shape import TOWERS
from comp.errors import CompExportError
from comp.flops.llava import llava_macs, llava_params
from comp.registry.families import family_of

DECODER_CONFIGS = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
}
TOWER_CONFIGS = {
    "clip_vision_model": CLIPVisionConfig,
    "siglip_vision_model": SiglipVisionConfig,
    "idefics3_vision": Idefics3VisionConfig,
    "smolvlm_vision": SmolVLMVisionConfig,
    "internvl_vision": InternVLVisionConfig,
}
CLIP_L = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
QWEN2_05B = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
QWEN3_17B = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}
SMOLVLM_256M = {
    "image_token_id": 49190,
    "scale_factor": 4,
    "tie_word_embeddings": False,
    "vision_config": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 512,
        "patch_size": 16,
    },
    "text_config": {
        "model_type": "llama",
        "vocab_size": 49280,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "rope_theta": 100000.0,
        "tie_word_embeddings": False,
    },
}


def shape_of(model: torch.nn.Module) -> ModelShape:
    return ModelShape.from_config(model.config.to_dict())


def on_meta(kind, config):
    with torch.device("meta"):
        return kind(config)


@pytest.mark.parametrize("name", DECODERS)
def test_defaults_of_decoders_are_those_of_transformers(name: str) -> None:
    given = decoder_shape({"model_type": name}, PartSizes(), "here")
    assert given == decoder_shape(DECODER_CONFIGS[name]().to_dict(), PartSizes(), "here")


@pytest.mark.parametrize("name", TOWERS)
def test_defaults_of_towers_are_those_of_transformers(name: str) -> None:
    kind, theirs = TOWERS[name], TOWER_CONFIGS[name]().to_dict()
    edges = {key: theirs[key][0] for key in theirs if isinstance(theirs[key], (list, tuple))}
    theirs |= {key: edge for key, edge in edges.items() if key in ("image_size", "patch_size")}
    assert {key: theirs[key] for key in kind.defaults} == dict(kind.defaults)
    assert (theirs["hidden_act"], theirs["layer_norm_eps"]) == (kind.act, kind.layer_norm_eps)


@pytest.mark.parametrize(
    ("vision", "text"),
    [
        (CLIPVisionConfig(**CLIP_L), MistralConfig(sliding_window=None)),
        (SiglipVisionConfig(**SO400M), Qwen2Config(**QWEN2_05B)),
        (SiglipVisionConfig(**SO400M, vision_use_head=False), Qwen3Config(**QWEN3_17B)),
        (SiglipVisionConfig(), LlamaConfig(attention_bias=True, mlp_bias=True)),
    ],
    ids=["mistral-7b", "siglip-qwen2", "siglip-qwen3", "siglip-b16-llama"],
)
def test_llavas_of_other_parts_have_the_parameters_of_transformers(vision, text) -> None:
    strategy = "default" if vision.model_type == "clip_vision_model" else "full"
    config = LlavaConfig(
        vision_config=vision, text_config=text, vision_feature_select_strategy=strategy
    )
    config.tie_word_embeddings = text.tie_word_embeddings
    model = on_meta(LlavaForConditionalGeneration, config)
    shape = shape_of(model)
    assert sum(llava_params(shape).values()) == model.num_parameters()
    theirs = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, size in tensors_of(shape):
        assert theirs[name] == size


@pytest.mark.parametrize(
    ("name", "kind", "config", "params", "image_tokens"),
    [
        ("smolvlm-256m", Idefics3ForConditionalGeneration, Idefics3Config, 256_484_928, 64),
        ("smolvlm-500m", Idefics3ForConditionalGeneration, Idefics3Config, 507_482_304, 64),
        ("smolvlm2-2.2b", SmolVLMForConditionalGeneration, SmolVLMConfig, 2_246_272_880, 81),
    ],
)
def test_aliases_of_smolvlm_have_their_published_sizes(
    name, kind, config, params, image_tokens
) -> None:
    packaged = config_of(name)
    shape = ModelShape.from_config(packaged)
    model = on_meta(kind, config.from_dict(packaged))
    assert shape == shape_of(model)
    assert sum(llava_params(shape).values()) == model.num_parameters() == params
    assert shape.image_tokens == image_tokens  # of a tile


@pytest.mark.parametrize(
    ("name", "params"), [("internvl3.5-1b", 1_060_897_792), ("internvl3-1b", 802_293_120)]
)
def test_aliases_of_internvl_have_their_published_sizes(name, params) -> None:
    packaged = config_of(name)
    shape = ModelShape.from_config(packaged)
    model = on_meta(InternVLForConditionalGeneration, InternVLConfig.from_dict(packaged))
    assert shape == shape_of(model)
    model.tie_weights()
    counted = sum(llava_params(shape).values())
    assert counted == model.num_parameters()
    tied = params if name != "internvl3-1b" else counted
    assert counted == tied
    assert shape.image_tokens == 256  # of a tile


def test_multiply_accumulates_of_a_smolvlm() -> None:
    shape = ModelShape.from_config({"model_type": "smolvlm"} | SMOLVLM_256M)
    report = llava_macs(shape, 17 * 64, 64)  # 4 x 4 tiles and the whole picture
    # A tile: patches, 12 blocks of 1,024 tokens with two norms each, and the last norm.
    d, n, f = 768, 1024, 3072
    block = 4 * n * d * d + 2 * n * n * d + 2 * n * d * f + 10 * n * d
    assert report.parts["vision"].macs == 17 * (n * 3 * 16 * 16 * d + 12 * block + 5 * n * d)
    assert report.parts["projector"].macs == 17 * 64 * (16 * 768 * 576)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (SmolVLMConfig(**SMOLVLM_256M), SmolVLMForConditionalGeneration),
        (Idefics3Config(**SMOLVLM_256M), Idefics3ForConditionalGeneration),
        (InternVLConfig.from_dict(config_of("internvl3.5-1b")), InternVLForConditionalGeneration),
    ],
    ids=["smolvlm", "idefics3", "internvl"],
)
def test_tensors_of_tiled_models_have_the_names_and_shapes_of_transformers(config, kind) -> None:
    model = on_meta(kind, config)
    theirs = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    family = family_of(model.config.model_type)
    for name, size in tensors_of(shape_of(model)):
        assert theirs[name_in_torch(name, family)] == size
    for name in theirs:
        assert name_in_torch(canonical_name(name), family) == name


def test_a_sliding_window_ends_the_positions() -> None:
    def positions(**text) -> int:
        return decoder_shape(text, PartSizes(), "here").positions

    assert positions(model_type="mistral") == 4096
    assert positions(model_type="mistral", sliding_window=None) == 131072
    qwen = {"model_type": "qwen2", "sliding_window": 1024, "num_hidden_layers": 4}
    assert positions(**qwen) == 32768
    assert positions(**qwen, use_sliding_window=True) == 32768  # its layers come later
    assert positions(**qwen, use_sliding_window=True, max_window_layers=2) == 1024
    full, sliding = ["full_attention"] * 4, ["full_attention", "sliding_attention"] * 2
    assert positions(**qwen, use_sliding_window=True, layer_types=full) == 32768
    assert positions(**qwen, use_sliding_window=True, layer_types=sliding) == 1024


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale_factor": 3}, "scale_factor 3 does not divide the 32 patches"),
        ({"text_config": {"model_type": "gemma3_text"}}, "'gemma3_text': not one of llama"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "not one of smolvlm_vision"),
    ],
)
def test_unsupported_parts_are_refused_by_name(changes, message: str) -> None:
    config = {"model_type": "smolvlm"} | SMOLVLM_256M | changes
    with pytest.raises(CompExportError, match=message):
        ModelShape.from_config(config, "here")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"downsample_ratio": 0.3}, "downsample_ratio 0.3 of 32 patches"),
        ({"vision_feature_select_strategy": "full"}, "is 'full', and .CLS. has no neighbours"),
        (
            {"vision_config": {"norm_type": "rms_norm"}},
            "norm_type is 'rms_norm', and only 'layer_norm'",
        ),
        ({"vision_config": {"use_qk_norm": True}}, "use_qk_norm is True"),
        ({"vision_config": {"image_size": [448, 224]}}, "only square images"),
        ({"vision_feature_layer": [-1, -2]}, "has one feature layer"),
        ({"text_config": {"model_type": "gpt_oss"}}, "'gpt_oss': not one of llama"),
    ],
)
def test_unsupported_parts_of_an_internvl_are_refused_by_name(changes, message: str) -> None:
    with pytest.raises(CompExportError, match=message):
        ModelShape.from_config(config_of("internvl3.5-1b") | changes, "here")
