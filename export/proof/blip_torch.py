"""Verify a BLIP: run each example of its task in torch.

Questions and captions are compared by the first token's logits and the greedy text, statements by their
logits, retrieval by both embeddings, the matching logits of each pair and the ranking of all pairs.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from comp.adapter import Forwarding
from comp.families.blip.adapter import BlipAdapter
from comp.families.blip.forward import encoded_by, memories_of, said_by, seen_by
from comp.families.blip.text_forward import Memory, Seen
from comp.families.encoder.adapter import EncoderBatch
from comp.families.encoder.forward import Encoded
from comp.masks import Masks
from comp.plan import DropPlan, Place, PruningPlan
from comp.tokens.drop_rules import RatioRule
from export.proof.blip_graphs import BlipGraphs
from export.proof.compare import Answered, greedy
from export.proof.families import Verification
from export.proof.masked_torch import RecordingRule, recorded_scores
from export.proof.outputs import embedding, statement
from export.proof.outputs import logits as logits_of_words
from export.proof.torch_reference import TorchReference

Recorders = dict[Place, RecordingRule]


class BlipTorch:
    """A BLIP with optional masks and drops (see ``export.proof.compare.Runner``)."""

    def __init__(
        self, adapter: BlipAdapter, drops: tuple[DropPlan, ...], masks: Masks | None
    ) -> None:
        self._adapter = adapter
        self._model = adapter.model
        self._drops = drops
        self._masks = masks

    @torch.no_grad()
    def ask(self, question: EncoderBatch, max_new_tokens: int) -> Answered:
        """Run one example of the task."""
        batch = question.to(self._adapter.device)
        recorders = self._ears()
        seen = seen_by(self._model, batch.pixel_values, self._how(recorders))
        record = _KeptRecord(self._drops)
        record.images(recorders, seen)
        task = self._adapter.task
        if task == "caption":
            return self._said(Memory.of_seen(seen), record, max_new_tokens)
        if task == "retrieval":
            return self._matched(batch, seen, recorders, record)
        memories = memories_of(seen, self._adapter.images)
        read = encoded_by(
            self._model, batch.input_ids, batch.attention_mask, memories, self._how(recorders)
        )
        record.texts(recorders, read)
        if task == "question":
            return self._said(Memory.of_text(read), record, max_new_tokens)
        logits = self._model.cls_head(read.tokens.states[:, 0])[0].float().cpu().numpy()
        margin = float(abs(logits[1] - logits[0]))
        chosen = [int(logits.argmax())]
        return Answered((statement(logits),), record.kept, record.scores, chosen, margin)

    def _ears(self) -> Recorders:
        return {drop.place: RecordingRule(RatioRule.from_plan(drop)) for drop in self._drops}

    def _how(self, recorders: Recorders) -> Forwarding:
        return Forwarding(self._masks, dict(recorders))

    def _matched(
        self, batch: EncoderBatch, seen: Seen, recorders: Recorders, record: "_KeptRecord"
    ) -> Answered:
        """Run both embeddings, and the text once more with cross-attention to the image."""
        model, ids, mask = self._model, batch.input_ids, batch.attention_mask
        alone = encoded_by(model, ids, mask, [], self._how(recorders))
        record.texts(recorders, alone)
        again = self._ears()
        both = encoded_by(model, ids, mask, memories_of(seen, 1), self._how(again))
        record.texts(again, both)
        image, text, match = (
            values[0].float().cpu().numpy()
            for values in (
                F.normalize(model.vision_proj(seen.states[:, 0]), dim=-1),
                F.normalize(model.text_proj(alone.tokens.states[:, 0]), dim=-1),
                model.itm_head(both.tokens.states[:, 0]),
            )
        )
        outputs = (embedding(image, text), statement(match))
        return Answered(outputs, record.kept, record.scores, [])

    def _said(self, memory: Memory, record: "_KeptRecord", max_new_tokens: int) -> Answered:
        """Greedy tokens including the end; each step runs the whole text, without a cache."""
        text = self._model.config.text_config

        def step(token: int, ids: torch.Tensor) -> tuple[np.ndarray, torch.Tensor]:
            ids = torch.cat([ids, ids.new_tensor([[token]])], dim=1)
            options = Forwarding(self._masks)
            logits = said_by(self._model, ids, torch.ones_like(ids), memory, options)[0, -1]
            return logits.float().cpu().numpy(), ids

        nothing = torch.empty((1, 0), dtype=torch.long, device=memory.states.device)
        first, ids = step(text.bos_token_id, nothing)
        answer = greedy(first, ids, step, (text.sep_token_id,), max_new_tokens)
        outputs, margins = (logits_of_words(first),), answer.margins
        return Answered(outputs, record.kept, record.scores, answer.tokens, step_margins=margins)


class _KeptRecord:
    """Records the kept tokens at each place, and the scores that decided it.

    A second image's tokens are offset by the tokens of the first.
    """

    def __init__(self, drops: tuple[DropPlan, ...]) -> None:
        self._drops = drops
        self.kept: list[np.ndarray] = []
        self.scores: list[np.ndarray] = []

    def images(self, recorders: Recorders, seen: Seen) -> None:
        rows = len(seen.states)
        self._add(recorders, "vision", seen.encoded, range(rows))

    def texts(self, recorders: Recorders, read: Encoded) -> None:
        self._add(recorders, "language", read, range(1))

    def _add(self, recorders: Recorders, part: str, encoded: Encoded, rows: Sequence[int]) -> None:
        count = encoded.entered.shape[1]
        for drop in self._drops:
            if drop.part != part:
                continue
            recorder, number = recorders[drop.place], drop.after_layer
            index = encoded.kept[number].index
            places = [index[row].cpu().numpy() + row * count for row in rows]
            self.kept.append(np.concatenate(places))
            scores = [recorded_scores(recorder, encoded, number, row) for row in rows]
            self.scores.append(np.concatenate(scores))


class BlipTorchReference(TorchReference[BlipAdapter]):
    """The torch models of a BLIP's run."""

    @property
    def places(self) -> tuple[Place, ...]:
        """For retrieval the text's places occur twice: alone, and with cross-attention."""
        drops = [drop.place for drop in self.plan.drops]
        seen = [place for place in drops if place[0] == "vision"]
        read = [place for place in drops if place[0] == "language"]
        again = [("cross", number) for _, number in read]
        return (*seen, *read, *(again if self.slim.task == "retrieval" else ()))

    def runner(
        self, adapter: BlipAdapter, plan: PruningPlan | None, masks: Masks | None
    ) -> BlipTorch:
        return BlipTorch(adapter, () if plan is None else plan.drops, masks)


VERIFICATION = Verification.of_graphs(BlipTorchReference.load, BlipGraphs)
