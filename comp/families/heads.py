"""Tell whether the output layer of a model in memory is tied to the word embedding."""

from typing import Any

from torch import Tensor

from comp.checkpoints.tying import FLAG


def has_own_head(model: Any) -> bool:
    """Whether the output layer of a LLaVA, or of a BLIP's decoder, is not the word embedding."""
    pair = _pair(model)
    return pair is not None and pair[0].data_ptr() != pair[1].data_ptr()


def record_head(model: Any) -> None:
    """Clear the tying flag of the configuration if the output layer is a separate tensor.

    The flag may be set nevertheless: transformers keeps two different tensors of a checkpoint apart. A model
    made from the configuration would tie them again.
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
        return model.lm_head.weight, model.get_input_embeddings().weight
    return None
