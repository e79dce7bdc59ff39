"""Record the sizes of a slim BLIP in its configuration, and resize a model to them.

See ``comp.checkpoints.pruning_entry``: language is over the blocks of the text encoder, then of the
decoder; cross over the branches of cross-attention in the same order.
"""

from typing import Any

from comp.adapter import Forwarding
from comp.checkpoints.pruning_entry import PruningEntry
from comp.families.blip.text_forward import branches_of, vision_blocks
from comp.families.surgery import set_in, set_out
from comp.plan import DropPlan
from comp.tokens.dictionary import attach_dictionary
from comp.tokens.drop_rules import rules_from_plan


class SlimBlip:
    """Properties of a slim BLIP, by its configuration; it is a model of transformers too."""

    config: Any

    @property
    def drops(self) -> tuple[DropPlan, ...]:
        """Where tokens are dropped."""
        return PruningEntry.of_config(self.config).drops or ()

    @property
    def forwarding(self) -> Forwarding:
        """Forward pass of the model."""
        return Forwarding(rules=rules_from_plan(self.drops))

    def shrink(self) -> None:
        """Resize the model to the recorded sizes, and add a dictionary if a drop ranks by it."""
        _resize(self, PruningEntry.of_config(self.config))
        attach_dictionary(self, self.drops)


def text_layers(model: Any) -> list[Any]:
    """Blocks of the text encoder, then of the decoder, of those that the BLIP has."""
    encoder, decoder = getattr(model, "text_encoder", None), getattr(model, "text_decoder", None)
    layers = [] if encoder is None else list(encoder.encoder.layer)
    return layers if decoder is None else [*layers, *decoder.bert.encoder.layer]


def cross_outputs(layer: Any) -> list[tuple[Any, str]]:
    """Owner and attribute name of the output projection of each branch of cross-attention."""
    branches = branches_of(layer)
    names = ["dense"] if len(branches) == 1 else ["dense0", "dense1"]
    return [(layer.crossattention.output, name) for name in names[: len(branches)]]


def _resize(model: Any, pruning: PruningEntry) -> None:
    """Replace the projections of each block by ones of the recorded sizes."""
    if pruning.vision is not None:
        tower = vision_blocks(model.vision_model)
        for block, left in zip(tower, pruning.vision.blocks, strict=True):
            block.resize(*left)
    layers = text_layers(model)
    if pruning.language is not None:
        for layer, (heads, width) in zip(layers, pruning.language.blocks, strict=True):
            _resize_attention(layer.attention.self, (layer.attention.output, "dense"), heads)
            set_out(layer.intermediate, ("dense",), width)
            set_in(layer.output, "dense", width)
    if pruning.cross is not None:
        branches = [
            pair
            for layer in layers
            for pair in zip(branches_of(layer), cross_outputs(layer), strict=True)
        ]
        for (module, output), heads in zip(
            branches, pruning.cross.num_attention_heads or (), strict=True
        ):
            _resize_attention(module, output, heads)


def _resize_attention(module: Any, output: tuple[Any, str], heads: int) -> None:
    width = heads * module.attention_head_size
    set_out(module, ("query", "key", "value"), width)
    set_in(*output, width)
    # transformers' own forward pass, used to generate with the decoder, reshapes heads by these.
    module.num_attention_heads, module.all_head_size = heads, width
