"""The learned dictionary of MADTP: entries that the tokens of both modalities are compared with.

A token's response to an entry is their cosine. The entries have the width of the narrower tower; tokens of
the wider one are projected to it. The dictionary is a submodule of the model, so that it is trained, saved
and cut with the model.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from comp.checkpoints.tensor_names import DICTIONARY
from comp.flops.token_drops import DICTIONARY_SIZE
from comp.plan import DropPlan, Part

TEMPERATURE = 0.07  # of the contrastive loss, CLIP's initial one


Responses = Callable[[Tensor, Tensor], Tensor]


"""Responses ``[B, N, T]`` of states ``[B, N, D]`` with presence ``[B, N]`` to the entries of a dictionary."""


class TokenDictionary(nn.Module):
    """Entries ``[T, P]`` and a projection of the wider tower's tokens."""

    def __init__(self, vision_width: int, text_width: int, size: int = DICTIONARY_SIZE) -> None:
        super().__init__()
        width = min(vision_width, text_width)
        self.entries = nn.Parameter(torch.randn(size, width) * width**-0.5)
        widths = {"vision": vision_width, "language": text_width}
        self.projections = nn.ModuleDict(
            {part: nn.Linear(of, width, bias=False) for part, of in widths.items() if of != width}
        )
        self._recorded: list[tuple[str, Tensor]] | None = None

    def responses(self, part: Part, states: Tensor, alive: Tensor) -> Tensor:
        """Cosines ``[B, N, T]`` of ``states [B, N, D]``, present where ``alive [B, N]``, with the entries."""
        projected = self.projections[part](states) if part in self.projections else states
        cosines = (
            F.normalize(projected.float(), dim=-1) @ F.normalize(self.entries.float(), dim=-1).T
        )
        if self._recorded is not None:
            present = (alive > 0)[..., None]
            self._recorded.append((part, torch.where(present, cosines, -1.0).amax(1)))
        return cosines

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the strongest responses of each row at each place, for ``alignment_loss``."""
        self._recorded = []
        try:
            yield
        finally:
            self._recorded = None

    def alignment_loss(self) -> Tensor:
        """Contrastive loss of the entries that images and their texts respond to.

        Of each side: the strongest response to every entry, mean over its places; images of a text are
        averaged. All images of the batch are contrasted with all texts, both ways. Without contrast,
        entries that nothing responds to would minimise the loss.

        Raises:
            RuntimeError: no responses of one of the sides were recorded.
        """
        vision, text = (self._mean_of(part) for part in ("vision", "language"))
        vision = vision.unflatten(0, (len(text), -1)).mean(1)
        sides = [F.normalize(side - side.mean(-1, keepdim=True), dim=-1) for side in (vision, text)]
        products = sides[0] @ sides[1].T / TEMPERATURE
        own = torch.arange(len(text), device=products.device)
        return (F.cross_entropy(products, own) + F.cross_entropy(products.T, own)) / 2

    def _mean_of(self, part: str) -> Tensor:
        """Mean over the places of a part, ``[B, T]``; of a part that ran twice, the first rows."""
        recorded = [strongest for of, strongest in self._recorded or () if of == part]
        if not recorded:
            raise RuntimeError(f"no drop place of {part} was passed with the dictionary")
        rows = min(len(strongest) for strongest in recorded)
        return torch.stack([strongest[:rows] for strongest in recorded]).mean(0)


def attach_dictionary(model: Any, drops: tuple[DropPlan, ...]) -> None:
    """Add a dictionary with random entries to a model, if one of its drops ranks by it."""
    if any(drop.ranking == "aligned" for drop in drops):
        config = model.config
        widths = config.vision_config.hidden_size, config.text_config.hidden_size
        device = next(model.parameters()).device
        model.add_module(DICTIONARY, TokenDictionary(*widths).to(device))


def dictionary_of(model: Any) -> TokenDictionary | None:
    """The dictionary of a model, if it has one."""
    return getattr(model, DICTIONARY, None)


def responses_of(model: Any, part: Part) -> Responses | None:
    """Return the function of responses of a part's tokens to the model's dictionary, if it has one."""
    dictionary = dictionary_of(model)
    if dictionary is None:
        return None
    return lambda states, alive: dictionary.responses(part, states, alive)
