"""Dense supervision of the vision tower: predict the word for the thing on every projected patch.

Words are predicted by the decoder's own (tied) embedding, which moves image tokens into word space before
any training on questions. Small linear heads also predict the place, size and centre of the thing; they
exist in training only.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from comp.tiny_models.tiny_llava import WIDTH


class PatchHeads(nn.Module):
    """Predicts, from a projected patch, its thing's centre and size, and whether it is the centre."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH)
        self.geometry = nn.Linear(WIDTH, 3)
        self.centre = nn.Linear(WIDTH, 1)


def dense_loss(
    heads: PatchHeads, embeddings: Tensor, patches: Tensor, batch: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the sum of the word, geometry and centre losses, and the accuracy of words on things."""
    states = heads.norm(patches)
    logits = F.linear(states, embeddings)
    target = batch["patch_word"]
    word = F.cross_entropy(logits.flatten(0, 1).float(), target.flatten())
    has_thing = ~batch["patch_geometry"].isnan()
    geometry_target = batch["patch_geometry"].nan_to_num()
    offset = (heads.geometry(states).float() - geometry_target).abs() * has_thing
    geometry = offset.sum() / has_thing.sum()
    weight = torch.tensor(8.0, device=target.device)
    centre = F.binary_cross_entropy_with_logits(
        heads.centre(states)[..., 0].float(), batch["patch_centre"], pos_weight=weight
    )
    on_things = has_thing[..., 0]
    right = ((logits.argmax(-1) == target) & on_things).sum() / on_things.sum()
    return word + 3 * geometry + 0.5 * centre, right
