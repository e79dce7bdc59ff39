"""What a forward pass shows to whoever measures importance."""

from typing import Protocol

from torch import Tensor

from comp.masks import BlockKey


class Observer(Protocol):
    """Sees the inputs of every output projection, with the importance of the tokens there."""

    def heads(self, key: BlockKey, mixed: Tensor, importance: Tensor) -> None:
        """``mixed [B, N, H * hd]``: what the attention's output projection is given."""
        ...

    def channels(self, key: BlockKey, hidden: Tensor, importance: Tensor) -> None:
        """``hidden [B, N, intermediate_size]``: what the FFN's output projection is given."""
        ...
