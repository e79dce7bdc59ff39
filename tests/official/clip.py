"""CLIP as OpenAI and LAION publish it.

clip-vit-base-patch32 has the hub's configuration; those of the others are the same conversion's with their
sizes, and where text_config_dict is not null, it holds those sizes. Of LAION's ViT-H-14 sizes and activation
are as in the two towers that are published alone. What saving wrote: clip-vit-base-patch32 by transformers
4.57 and 5.0, clip-vit-large-patch14 by 5.5.
"""

from typing import Any

from tests.official.checkpoint import Official, Spelling, joined
from tests.official.common import (
    HALF,
    NEW_PART,
    OLD_PART,
    added_token,
    clip_images,
    old_clip_images,
)

START, END = "<|startoftext|>", "<|endoftext|>"
TEXT: dict[str, Any] = {
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 512,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 2048,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 8,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "projection_dim": 512,
    "vocab_size": 49408,
}
VISION: dict[str, Any] = {
    "attention_dropout": 0.0,
    "dropout": 0.0,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "image_size": 224,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "model_type": "clip_vision_model",
    "num_attention_heads": 12,
    "num_channels": 3,
    "num_hidden_layers": 12,
    "patch_size": 32,
    "projection_dim": 512,
}
TOP: dict[str, Any] = {
    "architectures": ["CLIPModel"],
    "initializer_factor": 1.0,
    "logit_scale_init_value": 2.6592,
    "model_type": "clip",
}
OLD_TOKENIZER: dict[str, Any] = {
    "add_prefix_space": False,
    "bos_token": added_token(START, normalized=True, __type="AddedToken"),
    "do_lower_case": True,
    "eos_token": added_token(END, normalized=True, __type="AddedToken"),
    "errors": "replace",
    "model_max_length": 77,
    "name_or_path": "openai/clip-vit-base-patch32",
    "pad_token": END,
    "special_tokens_map_file": "./special_tokens_map.json",
    "tokenizer_class": "CLIPTokenizer",
    "unk_token": added_token(END, normalized=True, __type="AddedToken"),
}
SPECIALS: dict[str, Any] = {
    "bos_token": added_token(START, normalized=True),
    "eos_token": added_token(END, normalized=True),
    "pad_token": END,
    "unk_token": added_token(END, normalized=True),
}
TOKENIZER_OF_4: dict[str, Any] = {  # as saved by 4.51
    "add_prefix_space": False,
    "added_tokens_decoder": {
        "49406": added_token(START, normalized=True, special=True),
        "49407": added_token(END, special=True),
    },
    "bos_token": START,
    "clean_up_tokenization_spaces": False,
    "do_lower_case": True,
    "eos_token": END,
    "errors": "replace",
    "extra_special_tokens": {},
    "model_max_length": 77,
    "pad_token": END,
    "processor_class": "CLIPProcessor",
    "tokenizer_class": "CLIPTokenizer",
    "unk_token": END,
}
TOKENIZER_OF_5: dict[str, Any] = {
    "add_prefix_space": False,
    "backend": "tokenizers",
    "bos_token": START,
    "do_lower_case": True,
    "eos_token": END,
    "errors": "replace",
    "is_local": False,
    "model_max_length": 77,
    "pad_token": END,
    "processor_class": "CLIPProcessor",
    "tokenizer_class": "CLIPTokenizer",
    "unk_token": END,
}
SLOW = ("vocab.json", "merges.txt")
EDGE_OF: dict[str, Any] = {"image_size": 336}
WIDE_TEXT: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
}
LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
}
HUGE_TEXT: dict[str, Any] = {
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
}
HUGE: dict[str, Any] = {
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 16,
    "num_hidden_layers": 32,
    "patch_size": 14,
}


def _published(
    text: dict[str, Any],
    vision: dict[str, Any],
    projection: int,
    said_twice: bool,
    images: dict[str, Any],
) -> dict[str, Any]:
    version = {"transformers_version": "4.16.0.dev0"}
    return {
        "config.json": TOP
        | {
            "projection_dim": projection,
            "text_config": OLD_PART | version | TEXT | text,
            "text_config_dict": text if said_twice else None,
            "torch_dtype": "float32",
            "transformers_version": None,
            "vision_config": OLD_PART | version | VISION | vision,
            "vision_config_dict": vision if said_twice else None,
        },
        "preprocessor_config.json": images,
        "special_tokens_map.json": SPECIALS,
        "tokenizer_config.json": OLD_TOKENIZER,
    }


def _saved(
    text: dict[str, Any],
    vision: dict[str, Any],
    projection: int,
    defaults: bool,
    images: dict[str, Any],
) -> dict[str, Any]:
    """By transformers 5: with ``text_config_dict`` gone, its defaults (ids) are in ``text_config``."""
    ids = {"bos_token_id": 49406, "eos_token_id": 49407} if defaults else {}
    return {
        "config.json": TOP
        | {
            "dtype": "float32",
            "projection_dim": projection,
            "text_config": NEW_PART | TEXT | text | ids,
            "transformers_version": "5.5.4" if defaults else "5.0.0",
            "vision_config": NEW_PART | VISION | vision,
        },
        "processor_config.json": {"image_processor": images, "processor_class": "CLIPProcessor"},
        "tokenizer_config.json": TOKENIZER_OF_5,
    }


def _official(
    hub_id: str,
    text: dict[str, Any],
    vision: dict[str, Any],
    projection: int = 512,
    said_twice: bool = True,
    whole: bool = False,
    edge: int = 224,
    **images: Any,
) -> Official:
    old = _published(text, vision, projection, said_twice, old_clip_images(edge, **images))
    new = _saved(text, vision, projection, said_twice, clip_images(edge, **images))
    vocabulary = ("tokenizer.json", *SLOW)
    published = Spelling("as on the hub", old, vocabulary=vocabulary, every_verb=whole)
    saved = Spelling("saved by transformers 5", new, names="saved", every_verb=False)
    return Official(hub_id, "clip", "retrieval", (published, saved))


def _with(official: Official, *spellings: Spelling) -> Official:
    first, *others = official.spellings
    return Official(official.hub_id, official.family, official.task, (first, *spellings, *others))


def _saved_by_4(official: Official, edge: int) -> Spelling:
    """Both files of pictures: old keys and new ones side by side, as transformers 4.26 to 4.56 saved them."""
    files = joined(
        official.spellings[0].files,
        {
            "preprocessor_config.json": clip_images(
                edge, feature_extractor_type="CLIPFeatureExtractor", use_square_size=False
            ),
        },
    )
    config = {
        name: value for name, value in files["config.json"].items() if not name.endswith("_dict")
    }
    files |= {"config.json": config, "tokenizer_config.json": TOKENIZER_OF_4}
    return Spelling(
        "saved by transformers 4, its tokenizer as vocab.json and merges.txt",
        files,
        vocabulary=SLOW,
        every_verb=False,
    )


_BASE_32 = _official("openai/clip-vit-base-patch32", {}, {}, said_twice=False, whole=True)
_LARGE_TEXT = WIDE_TEXT | {"projection_dim": 768}
_LARGE_VISION = LARGE | {"projection_dim": 768}
CHECKPOINTS = (
    _with(_BASE_32, _saved_by_4(_BASE_32, 224)),
    _official("openai/clip-vit-base-patch16", {}, {"patch_size": 16}),
    _official("openai/clip-vit-large-patch14", _LARGE_TEXT, _LARGE_VISION, 768, whole=True),
    _official(
        "openai/clip-vit-large-patch14-336",
        _LARGE_TEXT,
        _LARGE_VISION | {"image_size": 336},
        768,
        edge=336,
    ),
    _official(
        "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", {"hidden_act": "gelu"}, {"hidden_act": "gelu"}
    ),
    _official(
        "laion/CLIP-ViT-L-14-laion2B-s32B-b82K",
        WIDE_TEXT | {"hidden_act": "gelu", "projection_dim": 768},
        LARGE | {"hidden_act": "gelu", "projection_dim": 768},
        768,
        image_mean=HALF,
        image_std=HALF,
    ),
    _official("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", HUGE_TEXT, HUGE, 1024, whole=True),
)
