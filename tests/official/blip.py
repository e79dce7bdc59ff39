"""BLIP as Salesforce publishes it.

config.json and preprocessor_config.json of blip-vqa-base and of blip-itm-base-coco have the published
SHA-256, those of blip-image-captioning-base are the hub's. The others differ from these in their sizes and
in their architecture only. What saving wrote: blip-vqa-base by transformers 4.41, blip-image-captioning-large
by transformers 5.5.
"""

from typing import Any

from tests.official.checkpoint import Official, Spelling, joined
from tests.official.common import DEVIATION, MEAN, NEW_PART, OLD_PART

CAPTION, QUESTION, MATCHING = (
    "BlipForConditionalGeneration",
    "BlipForQuestionAnswering",
    "BlipForImageTextRetrieval",
)
LATE_PART: dict[str, Any] = {  # added between the first CLIPs and BLIP
    "begin_suppress_tokens": None,
    "exponential_decay_length_penalty": None,
    "suppress_tokens": None,
    "tf_legacy_loss": False,
    "transformers_version": "4.26.0.dev0",
    "typical_p": 1.0,
}
TEXT: dict[str, Any] = {
    "attention_probs_dropout_prob": 0.0,
    "bos_token_id": 30522,
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 768,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "is_decoder": True,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "blip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "projection_dim": 768,
    "sep_token_id": 102,
    "use_cache": True,
    "vocab_size": 30524,
}
VISION: dict[str, Any] = {
    "attention_dropout": 0.0,
    "dropout": 0.0,
    "hidden_act": "gelu",
    "hidden_size": 768,
    "image_size": 384,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "model_type": "blip_vision_model",
    "num_attention_heads": 12,
    "num_channels": 3,
    "num_hidden_layers": 12,
    "patch_size": 16,
    "projection_dim": 512,
}
LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
}
TOP: dict[str, Any] = {
    "image_text_hidden_size": 256,
    "initializer_factor": 1.0,
    "logit_scale_init_value": 2.6592,
    "model_type": "blip",
    "projection_dim": 512,
}
SAVED_TOP = TOP | {"initializer_range": 0.02, "label_smoothing": 0.0}
FIRST_IMAGES: dict[str, Any] = {  # of the captioning checkpoints: all else is the class's default
    "do_normalize": True,
    "do_resize": True,
    "image_mean": MEAN,
    "image_processor_type": "BlipImageProcessor",
    "image_std": DEVIATION,
    "processor_class": "BlipProcessor",
    "size": 384,
}
IMAGES: dict[str, Any] = FIRST_IMAGES | {  # of the others
    "do_pad": True,
    "do_rescale": True,
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 384, "width": 384},
    "size_divisor": 32,
}
SPECIALS: dict[str, Any] = {
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
    "pad_token": "[PAD]",
    "sep_token": "[SEP]",
    "unk_token": "[UNK]",
}
TOKENIZER: dict[str, Any] = SPECIALS | {
    "do_basic_tokenize": True,
    "do_lower_case": True,
    "model_max_length": 512,
    "name_or_path": "bert-base-uncased",
    "never_split": None,
    "processor_class": "BlipProcessor",
    "special_tokens_map_file": None,
    "strip_accents": None,
    "tokenize_chinese_chars": True,
    "tokenizer_class": "BertTokenizer",
}
TOKENIZER_OF_5: dict[str, Any] = SPECIALS | {
    "backend": "tokenizers",
    "do_lower_case": True,
    "is_local": False,
    "model_max_length": 512,
    "processor_class": "BlipProcessor",
    "strip_accents": None,
    "tokenize_chinese_chars": True,
    "tokenizer_class": "BertTokenizer",
}
GENERATION: dict[str, Any] = {
    "_from_model_config": True,
    "bos_token_id": 30522,
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0,
    "eos_token_id": 2,
    "length_penalty": 1.0,
    "max_length": 20,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_scores": False,
    "pad_token_id": 0,
    "remove_invalid_values": False,
    "repetition_penalty": 1.0,
    "return_dict_in_generate": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "transformers_version": "5.5.4",
    "typical_p": 1.0,
    "use_cache": True,
}


def _images_of(architecture: str) -> dict[str, Any]:
    return FIRST_IMAGES if architecture == CAPTION else IMAGES


def _published(architecture: str, vision: dict[str, Any], whole: bool) -> Spelling:
    config = TOP | {
        "_commit_hash": None,
        "architectures": [architecture],
        "torch_dtype": "float32",
        "transformers_version": None,
        "text_config": OLD_PART | LATE_PART | TEXT,
        "vision_config": OLD_PART | LATE_PART | VISION | vision,
    }
    files = {
        "config.json": config,
        "preprocessor_config.json": _images_of(architecture),
        "special_tokens_map.json": SPECIALS,
        "tokenizer_config.json": TOKENIZER,
    }
    vocabulary = ("tokenizer.json", "vocab.txt")
    return Spelling("as on the hub", files, vocabulary=vocabulary, every_verb=whole)


def _saved_by_4(hub_id: str, architecture: str) -> Spelling:
    """transformers 4.27 to 4.47 left out defaults, sizes too."""
    config = SAVED_TOP | {
        "_name_or_path": hub_id,
        "architectures": [architecture],
        "torch_dtype": "float32",
        "transformers_version": "4.41.1",
        "text_config": {
            "initializer_factor": 1.0,
            "model_type": "blip_text_model",
            "num_attention_heads": 12,
        },
        "vision_config": {
            "dropout": 0.0,
            "initializer_factor": 1.0,
            "initializer_range": 0.02,
            "model_type": "blip_vision_model",
            "num_channels": 3,
        },
    }
    files = {
        "config.json": config,
        "preprocessor_config.json": joined(
            IMAGES, {"do_convert_rgb": True, "resample": 3, "size": {"height": 384, "width": 384}}
        ),
        "special_tokens_map.json": SPECIALS,
        "tokenizer_config.json": TOKENIZER | {"clean_up_tokenization_spaces": True},
    }
    return Spelling("saved by transformers 4", files, names="saved", every_verb=False)


def _saved_by_5(architecture: str, vision: dict[str, Any]) -> Spelling:
    wide = vision.get("hidden_size", 768)
    shared = {"dtype": "float32", "tf_legacy_loss": False}
    config = SAVED_TOP | {
        "architectures": [architecture],
        "dtype": "float32",
        "text_config": NEW_PART
        | TEXT
        | shared
        | {"encoder_hidden_size": wide, "label_smoothing": 0.0},
        "tie_word_embeddings": True,
        "transformers_version": "5.5.4",
        "vision_config": NEW_PART | VISION | shared | vision,
    }
    images = _images_of(architecture) | {
        "do_convert_rgb": True,
        "do_rescale": True,
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": 384, "width": 384},
    }
    images = {name: value for name, value in images.items() if name != "processor_class"}
    files = {
        "config.json": config,
        "processor_config.json": {"image_processor": images, "processor_class": "BlipProcessor"},
        "tokenizer_config.json": TOKENIZER_OF_5,
    }
    if architecture != MATCHING:
        files["generation_config.json"] = GENERATION
    return Spelling("saved by transformers 5", files, names="saved", every_verb=False)


def _official(
    name: str, task: str, architecture: str, whole: bool, vision: dict[str, Any] | None = None
) -> Official:
    hub_id, sizes = f"Salesforce/{name}", vision or {}
    published, by_5 = (
        _published(architecture, sizes, whole),
        _saved_by_5(architecture, sizes),
    )
    by_4 = (_saved_by_4(hub_id, architecture),) if architecture != MATCHING and not sizes else ()
    return Official(hub_id, "blip", task, (published, *by_4, by_5))


IMAGES_SHA256 = "0aa66e2e9ac3ea3b5cd4388c35072e22db4e1cc1f96c7872bed07749c712ade1"
SPECIALS_SHA256 = "b6d346be366a7d1d48332dbc9fdf3bf8960b5d879522b7799ddba59e76237ee3"
PUBLISHED_SHA256 = {
    "Salesforce/blip-vqa-base": {
        "config.json": "689a09e2a9980b7fcad329271c032254fde23b1ee7a90c67b003e1867dc9c098",
        "preprocessor_config.json": IMAGES_SHA256,
        "special_tokens_map.json": SPECIALS_SHA256,
    },
    "Salesforce/blip-itm-base-coco": {
        "config.json": "3e6464c2ce7c54512ddb101c5e9a8e77f4c2d637be9e3d005667ccd4a34c6ef2",
        "preprocessor_config.json": IMAGES_SHA256,
        "special_tokens_map.json": SPECIALS_SHA256,
    },
}
CHECKPOINTS = (
    _official("blip-image-captioning-base", "captions", CAPTION, whole=True),
    _official("blip-image-captioning-large", "captions", CAPTION, whole=True, vision=LARGE),
    _official("blip-vqa-base", "questions", QUESTION, whole=True),
    _official("blip-vqa-capfilt-large", "questions", QUESTION, whole=False),
    _official("blip-itm-base-coco", "retrieval", MATCHING, whole=True),
    _official("blip-itm-base-flickr", "retrieval", MATCHING, whole=False),
    _official("blip-itm-large-coco", "retrieval", MATCHING, whole=True, vision=LARGE),
    _official("blip-itm-large-flickr", "retrieval", MATCHING, whole=False, vision=LARGE),
)
