"""Slim SmolVLM and Idefics3 as ``transformers`` models; ``import comp`` registers them."""

from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.models.idefics3.modeling_idefics3 import Idefics3CausalLMOutputWithPast
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMCausalLMOutputWithPast

from comp.checkpoints.pruning_entry import PruningEntry
from comp.families.llava.slim_forward import SlimForward, resize


class CompSmolVLMConfig(SmolVLMConfig):
    """A SmolVLM config with ``pruning`` (``comp.checkpoints.pruning_entry``)."""

    model_type = "comp_smolvlm"
    pruning: dict | None = None


class CompIdefics3Config(Idefics3Config):
    """An Idefics3 config with ``pruning`` (``comp.checkpoints.pruning_entry``)."""

    model_type = "comp_idefics3"
    pruning: dict | None = None


class TiledForward(SlimForward):
    """``SlimForward`` of models whose processors pad the tiles of a batch."""

    def images_of(self, pixel_values: Tensor) -> Tensor:
        """Return the tiles ``[I, C, S, S]`` of ``[B, T, C, S, S]``, without those that are zero: padding."""
        tiles = pixel_values.flatten(0, 1)
        return tiles[(tiles != 0).flatten(1).any(1)]


class CompSmolVLMForConditionalGeneration(TiledForward, SmolVLMForConditionalGeneration):
    """SmolVLM with cut projections and token dropping (``SlimForward``)."""

    config: CompSmolVLMConfig
    output_class = SmolVLMCausalLMOutputWithPast

    def __init__(self, config: CompSmolVLMConfig) -> None:
        super().__init__(config)
        resize(self, PruningEntry.of_config(config))


class CompIdefics3ForConditionalGeneration(TiledForward, Idefics3ForConditionalGeneration):
    """Idefics3 with cut projections and token dropping (``SlimForward``)."""

    config: CompIdefics3Config
    output_class = Idefics3CausalLMOutputWithPast

    def __init__(self, config: CompIdefics3Config) -> None:
        super().__init__(config)
        resize(self, PruningEntry.of_config(config))


for _dense, _config, _model in (
    (SmolVLMConfig, CompSmolVLMConfig, CompSmolVLMForConditionalGeneration),
    (Idefics3Config, CompIdefics3Config, CompIdefics3ForConditionalGeneration),
):
    # Tensors have the same names in slim checkpoints as in dense ones.
    _names = get_checkpoint_conversion_mapping(_dense.model_type)
    if _names is not None:
        register_checkpoint_conversion_mapping(_model.__name__, _names, overwrite=True)
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModelForImageTextToText.register(_config, _model, exist_ok=True)
