"""Dense supervision of the vision tower: every projected patch is the word for what covers it.

The words are read through the decoder's own (tied) embedding, which puts image tokens into word
space before any question is asked. Small linear heads also read the place, size and centre of the
thing from each patch; they exist in training only.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from comp.tiny_models.tiny_llava import WIDTH


class PatchHeads(nn.Module):
    """Reads a projected patch: which word, where its thing's centre is, how large, is it the centre."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH)
        self.geometry = nn.Linear(WIDTH, 3)
        self.centre = nn.Linear(WIDTH, 1)


def project_patches(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """Projected patches ``[B, 144, d]`` of ``pixels [B, 168, 168, 3] uint8``."""
    # [B, H, W, 3] -> [B, 3, H, W], with CLIP's mean and deviation
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073], device=pixels.device)
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711], device=pixels.device)
    scaled = ((pixels.float() / 255 - mean) / deviation).permute(0, 3, 1, 2)
    tower = model.model.vision_tower
    states = tower.pre_layrnorm(tower.embeddings(scaled))
    states = tower.encoder(inputs_embeds=states).last_hidden_state
    return model.model.multi_modal_projector(states[:, 1:])


def dense_loss(
    heads: PatchHeads, embeddings: Tensor, patches: Tensor, batch: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Sum of the word, geometry and centre losses; and the share of right words on things."""
    states = heads.norm(patches)
    logits = F.linear(states, embeddings)
    target = batch["patch_word"]
    word = F.cross_entropy(logits.flatten(0, 1).float(), target.flatten())
    known = ~batch["patch_geometry"].isnan()
    wanted = batch["patch_geometry"].nan_to_num()
    offset = (heads.geometry(states).float() - wanted).abs() * known
    geometry = offset.sum() / known.sum()
    weight = torch.tensor(8.0, device=target.device)
    centre = F.binary_cross_entropy_with_logits(
        heads.centre(states)[..., 0].float(), batch["patch_centre"], pos_weight=weight
    )
    on_things = known[..., 0]
    right = ((logits.argmax(-1) == target) & on_things).sum() / on_things.sum()
    return word + 3 * geometry + 0.5 * centre, right
