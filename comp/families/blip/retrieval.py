"""Adapt BLIP for image-text retrieval: contrast of all pairs, matching of the likely ones."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from comp.adapter import DistillationTargets, Forwarding, Observer, Scored
from comp.data.example import AnyExample
from comp.families.blip.adapter import BlipAdapter, one_image
from comp.families.blip.forward import encoded_by, seen_by
from comp.families.blip.slim import CompBlipForImageTextRetrieval
from comp.families.blip.text_forward import Memory
from comp.families.encoder.adapter import EncoderBatch, contrast, kept_shares
from comp.families.encoder.forward import Encoded

RANKED = 8  # likeliest candidates by contrast, which matching then orders


class BlipRetrieval(BlipAdapter):
    """Adapter of ``BlipForImageTextRetrieval``: a batch's texts are candidates for its images, and back.

    The loss is BLIP's: contrast in the batch both ways, and matching of each pair against the hardest
    other text and image (the likeliest by contrast, not one sampled by it). Accuracy is that of BLIP's final
    ranking, for every image and for every text.
    """

    task = "retrieval"
    architecture = "BlipForImageTextRetrieval"
    slim_type = CompBlipForImageTextRetrieval

    def collate(self, examples: Sequence[AnyExample]) -> EncoderBatch:
        return self.captioned(one_image(examples, "retrieval"))

    def score(
        self, batch: EncoderBatch, forwarding: Forwarding, observer: Observer | None = None
    ) -> Scored:
        batch = batch.to(self.device)
        seen = seen_by(self.model, batch.pixel_values, forwarding, observer)
        image = Memory.of_seen(seen)
        ids, mask = batch.input_ids, batch.attention_mask
        alone = encoded_by(self.model, ids, mask, [], forwarding, observer)
        images = F.normalize(self.model.vision_proj(image.states[:, 0]), dim=-1)
        texts = F.normalize(self.model.text_proj(alone.tokens.states[:, 0]), dim=-1)
        products = (images @ texts.T).float()
        rows, looks, label = hard_pairs(products.detach())
        matched = self._matched(batch, image, forwarding, rows, looks, observer)
        scores = products * self._scale()
        loss = contrast(scores) + F.cross_entropy(self._match_scores(matched), label)
        shares = kept_shares("language", alone, matched) | kept_shares("vision", seen.encoded)
        # Each model chooses its own hard pairs, so that matching scores of two models are not comparable.
        targets = DistillationTargets((scores, scores.T), (seen.tokens, alone.tokens))
        return Scored(
            loss,
            lambda: self._ranked(batch, image, forwarding, products),
            shares,
            lambda: targets,
            len(scores),
        )

    def _scale(self) -> float:
        # transformers has no learnt temperature in this class: use the configuration's initial one.
        return math.exp(self.model.config.logit_scale_init_value)

    def _matched(
        self,
        batch: EncoderBatch,
        image: Memory,
        forwarding: Forwarding,
        texts: Tensor,
        images: Tensor,
        observer: Observer | None = None,
    ) -> Encoded:
        """Encode these texts, each with one of these images; both are indices into the batch."""
        memory = Memory(image.states[images], image.alive[images])
        ids, mask = batch.input_ids[texts], batch.attention_mask[texts]
        return encoded_by(self.model, ids, mask, [memory], forwarding, observer)

    def _match_scores(self, matched: Encoded) -> Tensor:
        return self.model.itm_head(matched.tokens.states[:, 0]).float()

    def _ranked(
        self, batch: EncoderBatch, image: Memory, forwarding: Forwarding, products: Tensor
    ) -> Tensor:
        """Whether the best candidate of each image, then of each text, is its own, ``[2B]``."""
        right = []
        for which, scores in ((0, products), (1, products.T)):
            likely = scores.topk(min(RANKED, len(scores)), dim=1)
            own = torch.arange(len(scores), device=scores.device)
            best = torch.zeros_like(own)
            for row, candidates in enumerate(likely.indices):
                sides = own[row].expand_as(candidates), candidates
                images, texts = sides if which == 0 else sides[::-1]
                matched = self._matched(batch, image, forwarding, texts, images)
                final = self._match_scores(matched)[:, 1] + likely.values[row]
                best[row] = candidates[final.argmax()]
            right.append(best == own)
        return torch.cat(right)


def hard_pairs(products: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs for matching: each text with its image, then hard negative pairs.

    Args:
        products: products of images with texts, ``[B, B]``.

    Returns:
        Texts and images as indices into the batch, and labels (1: a pair), each ``[3B]``: own pairs, the
        likeliest other text of each image, the likeliest other image of each text. A batch of one has only
        its own pair.
    """
    own = torch.arange(len(products), device=products.device)
    if len(own) == 1:
        return own, own, torch.ones_like(own)
    others = products.clone().fill_diagonal_(-torch.inf)
    texts = torch.cat([own, others.argmax(1), own])
    images = torch.cat([own, own, others.argmax(0)])
    return texts, images, (torch.arange(3 * len(own), device=own.device) < len(own)).long()
