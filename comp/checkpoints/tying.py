"""Decide whether output layer and word embedding are tied, as transformers does: by flags and tensors.

With the flag, a checkpoint may have one of the two tensors, which is then used for both; two different
tensors stay separate. Without the flag, both must be stored.
"""

from collections.abc import Mapping
from typing import Any

from comp.registry.families import family_of

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
    """Whether the flag of the model or of its text model is set; a missing flag counts as set in BLIP.

    In an InternVL it does so for the model, and not for its text model.
    """
    usual = not _is_llava(config)
    family = family_of(config.get("model_type"))
    whole = usual or (family is not None and family.ties)
    flag, of_text = config.get(FLAG), (config.get("text_config") or {}).get(FLAG)
    return bool(whole if flag is None else flag) or bool(usual if of_text is None else of_text)


def stand_ins(config: Mapping[str, Any]) -> dict[str, str]:
    """Map tensors that a checkpoint may lack to the tensors that replace them."""
    if not may_be_tied(config):
        return {}
    pairs = {LM_HEAD: EMBEDDING} if _is_llava(config) else BLIP_TIED
    return pairs | {source: target for target, source in pairs.items()}


def untied(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration with both flags cleared, for a checkpoint that stores both tensors."""
    text = {**(config.get("text_config") or {}), FLAG: False}
    return {**config, FLAG: False, "text_config": text}


def _is_llava(config: Mapping[str, Any]) -> bool:
    family = family_of(config.get("model_type"))
    return family is not None and family.reads_image_tokens
