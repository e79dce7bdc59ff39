"""Which output layers are the word embedding, as transformers decides it: by flags and by what is stored.

A flag says that the two may be one. Where a checkpoint has both tensors, and they differ, each is what it is;
where it has one of them, that is both; without the flag both have to be there.
"""

from collections.abc import Mapping
from typing import Any

from comp.registry import family_of

LM_HEAD = "lm_head.weight"
EMBEDDING = "model.language_model.embed_tokens.weight"
BLIP_HEAD = "text_decoder.cls.predictions"
BLIP_WORDS = "text_decoder.bert.embeddings.word_embeddings.weight"
BLIP_TIED = {
    f"{BLIP_HEAD}.decoder.weight": BLIP_WORDS,
    f"{BLIP_HEAD}.decoder.bias": f"{BLIP_HEAD}.bias",
}
FLAG = "tie_word_embeddings"


def may_be_tied(config: Mapping[str, Any]) -> bool:
    """Whether the flag of the whole or of its text model is set; BLIP's are, where they are left out."""
    usual = not _is_llava(config)
    flags = (config.get(FLAG), (config.get("text_config") or {}).get(FLAG))
    return any(usual if flag is None else bool(flag) for flag in flags)


def stand_ins(config: Mapping[str, Any]) -> dict[str, str]:
    """By the name of a tensor that a checkpoint may lack, the name of the one that is it as well."""
    if not may_be_tied(config):
        return {}
    pairs = {LM_HEAD: EMBEDDING} if _is_llava(config) else BLIP_TIED
    return pairs | {source: target for target, source in pairs.items()}


def untied(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a checkpoint that holds both: neither flag is set."""
    text = {**(config.get("text_config") or {}), FLAG: False}
    return {**config, FLAG: False, "text_config": text}


def _is_llava(config: Mapping[str, Any]) -> bool:
    family = family_of(config.get("model_type"))
    return family is not None and family.reads_image_tokens
