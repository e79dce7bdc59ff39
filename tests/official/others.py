"""Checkpoints that people name too, and that are none of the families here.

What is published of them is only their configuration: it is all that is read before they are refused.
"""

from typing import Any

from tests.official.checkpoint import Refused
from tests.official.llava import CONFIG, TEXT_7B

MISTRAL: dict[str, Any] = {
    "_name_or_path": "mistralai/Mistral-7B-v0.1",
    "architectures": ["MistralForCausalLM"],
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "sliding_window": 4096,
    "torch_dtype": "bfloat16",
    "vocab_size": 32064,
}
REFUSED = (
    Refused(
        "llava-hf/bakLlava-v1-hf",
        "its language model is a Mistral",
        (CONFIG | {"text_config": MISTRAL},),
        "mistral",
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
