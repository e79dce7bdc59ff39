"""Image towers of vision-language models: what comes before their blocks, and the blocks."""

from typing import Any

from torch import Tensor, nn

from comp.families.clip.forward import ClipBlock
from comp.families.clip.forward import blocks_of as clip_blocks
from comp.families.encoder.forward import TowerBlock
from comp.families.surgery import set_in, set_out


class InternBlock(TowerBlock):
    """Block of an InternViT: the outputs of attention and FFN are scaled by a vector each (LayerScale)."""

    @property
    def head_dim(self) -> int:
        return int(self.layer.attention.head_dim)

    @property
    def output(self) -> nn.Linear:
        return self.layer.attention.projection_layer

    def attention_inputs(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        module, normed = self.layer.attention, self.layer.layernorm_before(states)
        query, key, value = (
            projection(normed).unflatten(-1, (-1, module.head_dim)).transpose(1, 2)
            for projection in (module.q_proj, module.k_proj, module.v_proj)
        )
        return query, key, value

    def add_attention(self, states: Tensor, mixed: Tensor) -> Tensor:
        return states + self.layer.lambda_1 * self.output(mixed)

    def hidden(self, states: Tensor) -> Tensor:
        mlp = self.layer.mlp
        return mlp.activation_fn(mlp.fc1(self.layer.layernorm_after(states)))

    def add_ffn(self, states: Tensor, hidden: Tensor) -> Tensor:
        return states + self.layer.lambda_2 * self.layer.mlp.fc2(hidden)

    def resize_attention(self, width: int) -> None:
        attention = self.layer.attention
        set_out(attention, ("q_proj", "k_proj", "v_proj"), width)
        set_in(attention, "projection_layer", width)
        attention.num_heads, attention.embed_dim = width // self.head_dim, width


def tower_blocks(tower: Any) -> list[ClipBlock] | list[InternBlock]:
    """Blocks of a tower."""
    if hasattr(tower.encoder, "layer"):
        return [InternBlock(layer) for layer in tower.encoder.layer]
    return clip_blocks(tower)


def has_class_token(tower: Any) -> bool:
    """Whether [CLS] comes before the patches."""
    return hasattr(tower.embeddings, "class_embedding") or hasattr(tower.embeddings, "cls_token")


def embedded(tower: Any, pixel_values: Tensor) -> Tensor:
    """States before the first block ``[I, N, D]``.

    Towers of Idefics3 are called part by part: they want a mask of patches, and all images are whole here.
    """
    embeddings = tower.embeddings
    if hasattr(embeddings, "cls_token"):
        states: Tensor = embeddings(pixel_values.to(embeddings.cls_token.device))
        return states
    weight = embeddings.patch_embedding.weight
    pixel_values = pixel_values.to(weight.device, weight.dtype)
    if hasattr(embeddings, "class_embedding"):
        states = tower.pre_layrnorm(embeddings(pixel_values))
    else:
        states = embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        states = states + embeddings.position_embedding.weight
    return states
