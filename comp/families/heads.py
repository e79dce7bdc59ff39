"""Output layers that are the word embedding, or not, in a model in memory."""

from typing import Any

from torch import Tensor

from comp.checkpoints.tying import FLAG


def has_own_head(model: Any) -> bool:
    """Whether the output layer and the word embedding of a LLaVA, or of a BLIP's decoder, are two."""
    pair = _pair(model)
    return pair is not None and pair[0].data_ptr() != pair[1].data_ptr()


def record_head(model: Any) -> None:
    """Let the configuration say that the output layer is one of its own, where it is.

    A flag may say otherwise: transformers leaves two tensors of a checkpoint that differ as they are. What is
    made of the model's configuration would tie them again.
    """
    if has_own_head(model):
        for config in (model.config, model.config.text_config):
            setattr(config, FLAG, False)


def _pair(model: Any) -> tuple[Tensor, Tensor] | None:
    """The weights of the output layer and of the word embedding."""
    decoder = getattr(model, "text_decoder", None)
    if decoder is not None:
        words = decoder.bert.embeddings.word_embeddings
        return decoder.cls.predictions.decoder.weight, words.weight
    if hasattr(model, "lm_head"):
        return model.lm_head.weight, model.model.language_model.embed_tokens.weight
    return None
