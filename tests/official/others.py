"""Known checkpoints of unsupported families.

What is published of them is only their configuration: it is all that is read before they are refused.
"""

from typing import Any

from tests.official.checkpoint import Refused
from tests.official.llava import CONFIG, TEXT_7B

AUTHORS_LLAVA: dict[str, Any] = {
    "architectures": ["LlavaLlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "freeze_mm_mlp_adapter": False,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "image_aspect_ratio": "pad",
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_length": 4096,
    "max_position_embeddings": 4096,
    "mm_hidden_size": 1024,
    "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "model_type": "llava",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pad_token_id": 0,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.31.0",
    "tune_mm_mlp_adapter": False,
    "use_cache": True,
    "use_mm_proj": True,
    "vocab_size": 32000,
}


REFUSED = (
    Refused(
        "liuhaotian/llava-v1.5-7b",
        "LLaVA in its authors' format (`LlavaLlamaForCausalLM`)",
        (AUTHORS_LLAVA, AUTHORS_LLAVA | {"model_type": "llava_llama"}),
        "LlavaLlamaForCausalLM",
    ),
    Refused(
        "llava-hf/vip-llava-7b-hf",
        "VipLLaVA is another model",
        (
            CONFIG
            | {"architectures": ["VipLlavaForConditionalGeneration"], "model_type": "vipllava"},
        ),
        "vipllava",
    ),
    Refused(
        "llava-hf/llava-v1.6-vicuna-7b-hf",
        "LLaVA-NeXT cuts pictures into tiles",
        (
            CONFIG
            | {
                "architectures": ["LlavaNextForConditionalGeneration"],
                "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672]],
                "model_type": "llava_next",
                "text_config": TEXT_7B,
                "use_image_newline_parameter": True,
            },
        ),
        "llava_next",
    ),
    Refused(
        "Salesforce/blip2-opt-2.7b",
        "BLIP-2 is another model",
        ({"architectures": ["Blip2ForConditionalGeneration"], "model_type": "blip-2"},),
        "blip-2",
    ),
    Refused(
        "google/siglip-base-patch16-224",
        "SigLIP is another model",
        ({"architectures": ["SiglipModel"], "model_type": "siglip"},),
        "siglip",
    ),
)
