"""Slim InternVL as a ``transformers`` model; ``import comp`` registers it."""

from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    InternVLConfig,
    InternVLForConditionalGeneration,
)
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.models.internvl.modeling_internvl import InternVLCausalLMOutputWithPast

from comp.checkpoints.pruning_entry import PruningEntry
from comp.families.llava.slim_forward import SlimForward, resize


class CompInternVLConfig(InternVLConfig):
    """An InternVL config with ``pruning`` (``comp.checkpoints.pruning_entry``)."""

    model_type = "comp_internvl"
    pruning: dict | None = None


class CompInternVLForConditionalGeneration(SlimForward, InternVLForConditionalGeneration):
    """InternVL with cut projections and token dropping (``SlimForward``)."""

    config: CompInternVLConfig
    output_class = InternVLCausalLMOutputWithPast

    def __init__(self, config: CompInternVLConfig) -> None:
        super().__init__(config)
        resize(self, PruningEntry.of_config(config))


# Tensors have the same names in slim checkpoints as in dense ones.
_names = get_checkpoint_conversion_mapping(InternVLConfig.model_type)
if _names is not None:
    register_checkpoint_conversion_mapping(
        CompInternVLForConditionalGeneration.__name__, _names, overwrite=True
    )
AutoConfig.register(CompInternVLConfig.model_type, CompInternVLConfig, exist_ok=True)
AutoModelForImageTextToText.register(
    CompInternVLConfig, CompInternVLForConditionalGeneration, exist_ok=True
)
