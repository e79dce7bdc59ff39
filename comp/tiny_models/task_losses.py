"""Losses of the tiny BLIPs and tiny-clip: one for each task, and the dense one for all."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from comp.data.emoji_scenes.statements import CELLS, FACTS
from comp.families.blip.text_forward import Memory, read
from comp.families.encoder.forward import EncoderOptions
from comp.tiny_models.task_batches import (
    IGNORE,
    QUESTIONS_EACH,
    STATEMENTS_EACH,
    Trained,
    normalised,
)
from comp.tiny_models.tiny_blip import WIDTH

Losses = dict[str, Tensor]


class Trainee(nn.Module):
    """A model with training-only parts; the forward pass returns losses and accuracies."""

    def __init__(self, task: Trained, model: Any, tokens: "Tokens") -> None:
        super().__init__()
        self.task, self.tokens = task, tokens
        self.model: Any = model
        self.temperature = nn.Parameter(torch.tensor(2.66))  # of retrieval, as a logarithm
        self.facts = _PairFacts() if task == "statement" else None
        self.words = nn.Linear(WIDTH, tokens.vocabulary) if task == "clip" else None

    def forward(self, batch: dict[str, Tensor]) -> Losses:
        pixels = normalised(batch["pixels"])
        images = self._images(pixels)
        losses = self._dense(images[:, 1:], batch["patch_word"])
        if self.task != "trunk":
            losses |= getattr(self, f"_{self.task}")(images, batch)
        return losses

    def _images(self, pixels: Tensor) -> Tensor:
        """Return normalised states of [CLS] and of all patches, ``[I, 145, D]``."""
        vision = self.model.vision_model(pixels)
        if self.task == "clip":
            return self.model.vision_model.post_layernorm(vision.last_hidden_state)
        return vision.last_hidden_state

    def _dense(self, patches: Tensor, target: Tensor) -> Losses:
        if self.words is not None:
            logits = self.words(patches)
        else:
            text = getattr(self.model, "text_encoder", None)
            text = self.model.text_decoder.bert if text is None else text
            logits = F.linear(patches, text.embeddings.word_embeddings.weight) * WIDTH**-0.5
        loss = F.cross_entropy(logits.flatten(0, 1).float(), target.flatten())
        on_things = target != self.tokens.nothing
        right = (logits.argmax(-1) == target) & on_things
        return {"dense": loss, "patch_accuracy": right.sum() / on_things.sum()}

    def _present(self, ids: Tensor) -> Tensor:
        return (ids != self.tokens.pad).long()

    def _encoded(self, ids: Tensor, images: Tensor | None) -> Tensor:
        output = self.model.text_encoder(
            input_ids=ids, attention_mask=self._present(ids), encoder_hidden_states=images
        )
        return output.last_hidden_state

    def _answered(self, ids: Tensor, memory: Memory) -> Losses:
        """Return the losses of teacher forcing on ``ids [B, L]``; the first token becomes the start token.

        Not by the decoder's own forward pass: transformers (seen: 5.23) does not pass the mask of padded
        questions to cross-attention, so that answers would depend on the amount of padding.
        """
        inputs = ids.clone()
        inputs[:, 0] = self.tokens.start
        inputs = inputs[:, :-1]
        decoder, present = self.model.text_decoder, self._present(inputs)
        output = read(decoder.bert, inputs, present, [memory], EncoderOptions(), causal=True)
        logits = decoder.cls(output.tokens.states)
        labels = ids[:, 1:].masked_fill(ids[:, 1:] == self.tokens.pad, IGNORE)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE)
        right = (logits.argmax(-1) == labels) | (labels == IGNORE)
        return {"loss": loss, "accuracy": right.all(1).float().mean()}

    def _question(self, images: Tensor, batch: dict[str, Tensor]) -> Losses:
        images = images.repeat_interleave(QUESTIONS_EACH, 0)
        states = self._encoded(batch["ids"], images)
        return self._answered(batch["answers"], Memory(states, self._present(batch["ids"]).float()))

    def _caption(self, images: Tensor, batch: dict[str, Tensor]) -> Losses:
        return self._answered(batch["ids"], Memory.of_image(images))

    def _statement(self, images: Tensor, batch: dict[str, Tensor]) -> Losses:
        ids = batch["ids"]
        pairs = images.unflatten(0, (-1, 2)).repeat_interleave(STATEMENTS_EACH, 0)
        states = self.model.text_encoder(ids, self._present(ids), pairs)
        judged = _judged(self.model.cls_head(states[:, 0]), batch["label"])
        assert self.facts is not None
        return judged | self.facts(states[:, 0], batch)

    def _retrieval(self, images: Tensor, batch: dict[str, Tensor]) -> Losses:
        """Losses of contrast in the batch, and of matching against the hardest other image and text."""
        ids = batch["ids"]
        texts = self._encoded(ids, None)
        seen = F.normalize(self.model.vision_proj(images[:, 0]), dim=-1)
        read = F.normalize(self.model.text_proj(texts[:, 0]), dim=-1)
        losses = self._contrast(seen, read)
        other = (seen @ read.T).detach().fill_diagonal_(-2)
        wrong_text, wrong_image = other.argmax(1), other.argmax(0)
        rows = torch.cat([ids, ids[wrong_text], ids])
        looks = torch.cat([images, images, images[wrong_image]])
        scores = self.model.itm_head(self._encoded(rows, looks)[:, 0])
        label = torch.zeros(len(rows), dtype=torch.long, device=ids.device)
        label[: len(ids)] = 1
        matched = _judged(scores, label)
        return losses | {"match": matched["loss"], "match_accuracy": matched["accuracy"]}

    def _clip(self, images: Tensor, batch: dict[str, Tensor]) -> Losses:
        ids = batch["ids"]
        texts = self.model.text_model(input_ids=ids, attention_mask=self._present(ids))
        seen = F.normalize(self.model.visual_projection(images[:, 0]), dim=-1)
        read = F.normalize(self.model.text_projection(texts.pooler_output), dim=-1)
        return self._contrast(seen, read)

    def _contrast(self, images: Tensor, texts: Tensor) -> Losses:
        scores = (images @ texts.T).float() * self.temperature.clamp(max=4.6).exp()
        own = torch.arange(len(scores), device=scores.device)
        loss = (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2
        return {"loss": loss, "accuracy": (scores.argmax(1) == own).float().mean()}


class _PairFacts(nn.Module):
    """Auxiliary losses of facts about two pictures, predicted linearly from [CLS] of a statement.

    The answer is the parity of the wording and of a fact in each picture; none of them is useful without the
    others. From the label alone nothing was learned in 250 steps; with the facts of each picture, predicted
    in 86 of 100 cases, still nothing in 850. Therefore the model also predicts whether the facts differ, and
    the cells of the named things.
    """

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Linear(WIDTH, 2 * FACTS)
        self.differ = nn.Linear(WIDTH, 2)
        self.cells = nn.Linear(WIDTH, 2 * 2 * CELLS)

    def forward(self, state: Tensor, batch: dict[str, Tensor]) -> Losses:
        """Return the losses of ``state [B, D]``."""
        facts = batch["facts"]
        facts_loss = _judged(
            self.each(state).unflatten(-1, (2, FACTS)).flatten(0, 1), facts.flatten()
        )
        differ = _judged(self.differ(state), (facts[:, 0] != facts[:, 1]).long())
        cells = self.cells(state).unflatten(-1, (2, 2, CELLS)).flatten(0, 2).float()
        where = F.cross_entropy(cells, batch["cells"].flatten(), ignore_index=IGNORE)
        return {
            "match": facts_loss["loss"] + differ["loss"] + 0.5 * where.nan_to_num(),
            "fact_accuracy": facts_loss["accuracy"],
            "differ_accuracy": differ["accuracy"],
        }


class Tokens:
    """The special tokens that losses need."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, nothing: int) -> None:
        self.pad, self.start = tokenizer.pad_token_id, tokenizer.bos_token_id
        self.nothing, self.vocabulary = nothing, len(tokenizer)


def _judged(scores: Tensor, label: Tensor) -> Losses:
    loss = F.cross_entropy(scores.float(), label)
    return {"loss": loss, "accuracy": (scores.argmax(-1) == label).float().mean()}
