"""LLaVA-1.5 as llava-hf publishes it, and what others call LLaVA.

The files of llava-1.5-7b-hf are those of the hub. Of the 13B the configuration is the hub's, its other
files equal those of the 7B.
"""

from typing import Any

from tests.official.checkpoint import Official, Spelling, joined
from tests.official.common import UNLIMITED, added_token, clip_images

TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': '}}{% endif %}{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
# The hub's before it rendered all pictures first, and before templates had generation blocks.
FIRST_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': '}}{% endif %}{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{# Render all text next #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
TEXT_7B: dict[str, Any] = {  # sizes are the defaults of LlamaConfig, and therefore left out
    "_name_or_path": "lmsys/vicuna-7b-v1.5",
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "rms_norm_eps": 1e-05,
    "torch_dtype": "float16",
    "vocab_size": 32064,
}
SIZES_13B: dict[str, Any] = {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "num_key_value_heads": 40,
}
TEXT_13B = TEXT_7B | {"_name_or_path": "lmsys/vicuna-13b-v1.5"} | SIZES_13B
TOWER: dict[str, Any] = {
    "hidden_size": 1024,
    "image_size": 336,
    "intermediate_size": 4096,
    "model_type": "clip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "projection_dim": 768,
    "vocab_size": 32000,
}
CONFIG: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"],
    "ignore_index": -100,
    "image_token_index": 32000,
    "model_type": "llava",
    "pad_token_id": 32001,
    "projector_hidden_act": "gelu",
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.36.0.dev0",
    "vision_config": TOWER,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "vocab_size": 32064,
}
GENERATION: dict[str, Any] = {
    "_from_model_config": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 32001,
    "transformers_version": "4.36.0.dev0",
}
SPECIALS = {0: "<unk>", 1: "<s>", 2: "</s>", 32000: "<image>", 32001: "<pad>"}
TOKENIZER: dict[str, Any] = {
    "add_bos_token": True,
    "add_eos_token": False,
    "add_prefix_space": None,
    "added_tokens_decoder": {
        str(number): added_token(token, special=True) for number, token in SPECIALS.items()
    },
    "bos_token": "<s>",
    "clean_up_tokenization_spaces": False,
    "eos_token": "</s>",
    "extra_special_tokens": {"image_token": "<image>"},
    "image_token": "<image>",
    "legacy": False,
    "model_max_length": UNLIMITED,
    "pad_token": "<pad>",
    "padding_side": "left",
    "processor_class": "LlavaProcessor",
    "sp_model_kwargs": {},
    "tokenizer_class": "LlamaTokenizer",
    "trust_remote_code": False,
    "unk_token": "<unk>",
    "use_default_system_prompt": False,
}
PROCESSOR: dict[str, Any] = {
    "image_token": "<image>",
    "num_additional_image_tokens": 1,
    "patch_size": 14,
    "processor_class": "LlavaProcessor",
    "vision_feature_select_strategy": "default",
}
IMAGES = clip_images(336, processor_class="LlavaProcessor")
# Files of the hub today: the template twice, weights in three files under their first names.
HUB: dict[str, Any] = {
    "added_tokens.json": {"<image>": 32000, "<pad>": 32001},
    "chat_template.jinja": TEMPLATE,
    "chat_template.json": {"chat_template": TEMPLATE},
    "config.json": CONFIG,
    "generation_config.json": GENERATION,
    "preprocessor_config.json": IMAGES,
    "processor_config.json": PROCESSOR,
    "special_tokens_map.json": {
        name: added_token(token)
        for name, token in (
            ("bos_token", "<s>"),
            ("eos_token", "</s>"),
            ("pad_token", "<pad>"),
            ("unk_token", "<unk>"),
        )
    },
    "tokenizer_config.json": TOKENIZER,
}
# Saved by transformers 4.45: templates in the processor's file, dtypes as torch_dtype.
SAVED_BY_4 = joined(
    HUB,
    {
        "config.json": {
            "image_seq_length": 576,
            "transformers_version": "4.45.2",
        },
        "processor_config.json": {"chat_template": FIRST_TEMPLATE},
    },
)
# Saved by transformers 5 (5.5): one processor file, the backend instead of a tokenizer class.
SAVED_BY_5: dict[str, Any] = {
    "chat_template.jinja": TEMPLATE,
    "generation_config.json": GENERATION | {"transformers_version": "5.5.4"},
    "processor_config.json": {
        "image_processor": clip_images(336),
        **PROCESSOR,
    },
    "tokenizer_config.json": {
        "add_prefix_space": None,
        "backend": "tokenizers",
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "image_token": "<image>",
        "is_local": True,
        "legacy": False,
        "model_max_length": UNLIMITED,
        "model_specific_special_tokens": {"image_token": "<image>"},
        "pad_token": "<pad>",
        "padding_side": "left",
        "processor_class": "LlavaProcessor",
        "sp_model_kwargs": {},
        "tokenizer_class": "TokenizersBackend",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    },
    "config.json": joined(
        {name: value for name, value in CONFIG.items() if name != "torch_dtype"},
        {
            "dtype": "float16",
            "image_seq_length": 576,
            "multimodal_projector_bias": True,
            "transformers_version": "5.5.4",
            "vision_config": {
                "attention_dropout": 0.0,
                "dtype": "float16",
                "hidden_act": "quick_gelu",
                "initializer_factor": 1.0,
                "initializer_range": 0.02,
                "layer_norm_eps": 1e-05,
                "num_channels": 3,
            },
        },
    ),
}
NEW_TEXT: dict[str, Any] = {
    "_name_or_path": "lmsys/vicuna-7b-v1.5",
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "dtype": "float16",
    "eos_token_id": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pad_token_id": None,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 32064,
}


def _without(files: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in files.items() if name not in names}


def _spellings(text: dict[str, Any], new_text: dict[str, Any], whole: bool) -> tuple[Spelling, ...]:
    hub = joined(HUB, {"config.json": {"text_config": text}})
    saved = joined(SAVED_BY_5, {"config.json": {"text_config": new_text}})
    by_4 = joined(SAVED_BY_4, {"config.json": {"text_config": text}})
    by_4 = _without(by_4, "chat_template.jinja", "chat_template.json")
    return (
        Spelling("as on the hub", hub, shards=3),
        Spelling("saved by transformers 4", by_4, names="modules", every_verb=False),
        Spelling("saved by transformers 5", saved, names="saved", every_verb=whole),
    )


CHECKPOINTS = (
    Official(
        "llava-hf/llava-1.5-7b-hf",
        "llava",
        "questions",
        _spellings(TEXT_7B, NEW_TEXT, whole=True),
    ),
    Official(
        "llava-hf/llava-1.5-13b-hf",
        "llava",
        "questions",
        _spellings(
            TEXT_13B, NEW_TEXT | SIZES_13B | {"_name_or_path": "lmsys/vicuna-13b-v1.5"}, whole=False
        ),
    ),
)
