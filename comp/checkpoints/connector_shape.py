"""Sizes and tensors of a connector, which maps the features of an image tower to the width of a decoder."""

from collections.abc import Iterator
from dataclasses import dataclass

from comp.checkpoints.tensor_names import with_bias

CONNECTOR = "model.multi_modal_projector"  # canonical name (``comp.checkpoints.tensor_names``)
NORM, NORM_EPS = "layer_norm", 1e-5
MLP = ("linear_1", "linear_2")


@dataclass(frozen=True, kw_only=True)
class ConnectorShape:
    """Sizes of a connector: neighbouring patches joined or not, then linear layers.

    Attributes:
        in_features: width of a token of the tower, over all feature layers.
        out_features: width of the decoder.
        layers: names of the linear layers; between two of them is an activation.
        bias: whether they have biases.
        norm: whether a layer norm precedes the first linear layer.
        shuffle: edge in patches of the squares that are joined to one token (pixel shuffle); 1 joins none.
    """

    in_features: int
    out_features: int
    layers: tuple[str, ...] = MLP
    bias: bool = True
    norm: bool = False
    shuffle: int = 1

    @property
    def joined_features(self) -> int:
        """Width of what the first linear layer reads."""
        return self.in_features * self.shuffle**2

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Outputs and inputs of each linear layer."""
        sizes, width = {}, self.joined_features
        for name in self.layers:
            sizes[name] = (self.out_features, width)
            width = self.out_features
        return sizes

    def tokens(self, tower_tokens: int) -> int:
        """Tokens of an image after joining."""
        return tower_tokens // self.shuffle**2

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield canonical names and shapes of its tensors."""
        if self.norm:
            yield from with_bias(f"{CONNECTOR}.{NORM}", (self.joined_features,))
        for name, (rows, columns) in self.matrices.items():
            yield from with_bias(f"{CONNECTOR}.{name}", (rows, columns), self.bias)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one token that it gives."""
        return sum(rows * columns for rows, columns in self.matrices.values())

    @property
    def params(self) -> int:
        """Number of parameters."""
        biases = len(self.layers) * self.out_features if self.bias else 0
        norm = 2 * self.joined_features if self.norm else 0
        return self.macs + biases + norm
