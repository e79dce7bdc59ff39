"""Slim LLaVA as a ``transformers`` model.

``import comp`` registers it, so ``AutoModelForImageTextToText.from_pretrained`` loads a slim
checkpoint like any other.
"""

from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.models.llava.modeling_llava import LlavaCausalLMOutputWithPast

from comp.checkpoints.pruning_entry import PruningEntry
from comp.families.llava.slim_forward import SlimForward, resize


class CompLlavaConfig(LlavaConfig):
    """A LLaVA config with ``pruning``: head counts and widths by layer, drops, image selection.

    See ``comp.checkpoints.pruning_entry``.
    """

    model_type = "comp_llava"
    pruning: dict | None = None


class CompLlavaForConditionalGeneration(SlimForward, LlavaForConditionalGeneration):
    """LLaVA with cut projections and token dropping (``SlimForward``)."""

    config: CompLlavaConfig
    output_class = LlavaCausalLMOutputWithPast

    def __init__(self, config: CompLlavaConfig) -> None:
        super().__init__(config)
        resize(self, PruningEntry.of_config(config))


# Tensors have the same names in slim checkpoints as in dense ones.
_names = get_checkpoint_conversion_mapping(LlavaConfig.model_type)
if _names is not None:
    register_checkpoint_conversion_mapping(
        CompLlavaForConditionalGeneration.__name__, _names, overwrite=True
    )

AutoConfig.register(CompLlavaConfig.model_type, CompLlavaConfig, exist_ok=True)
AutoModelForImageTextToText.register(
    CompLlavaConfig, CompLlavaForConditionalGeneration, exist_ok=True
)
