"""Verify a BLIP: run each example of its task in torch.

Questions and captions are compared by the first token's logits and the greedy text, statements by their
logits, retrieval by both embeddings, the matching logits of each pair and the ranking of all pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from comp.adapter import Forwarding
from comp.errors import CompExportError
from comp.families.blip.adapter import BlipAdapter
from comp.families.blip.forward import encoded_by, memories_of, said_by, seen_by
from comp.families.blip.text_forward import Memory, Seen
from comp.families.encoder.adapter import EncoderBatch
from comp.families.encoder.forward import Encoded
from comp.families.loading import load_adapter
from comp.masks import Masks
from comp.plan import DropPlan, Place, PruningPlan
from comp.tokens.dictionary import attach_dictionary
from comp.tokens.drop_rules import RatioRule
from export.artifact.encoder_manifest import EncoderArtifact
from export.proof.blip_graphs import BlipGraphs
from export.proof.compare import Answered, Greedy
from export.proof.encoder_runtimes import ranked
from export.proof.families import Verification
from export.proof.masked_torch import RecordingRule, fill_kept, masks_of, recorded_scores
from export.proof.outputs import embedding, statement
from export.proof.outputs import logits as logits_of_words

Recorders = dict[Place, RecordingRule]


class BlipTorch:
    """A BLIP with optional masks and drops (see ``export.proof.compare.Runner``)."""

    def __init__(
        self, adapter: BlipAdapter, drops: tuple[DropPlan, ...] = (), masks: Masks | None = None
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
        ids = torch.full((1, 1), text.bos_token_id, device=memory.states.device)
        answer, first = Greedy(), None
        while len(answer.tokens) < max_new_tokens:
            options = Forwarding(self._masks)
            logits_row = said_by(self._model, ids, torch.ones_like(ids), memory, options)[0, -1]
            logits = logits_row.float().cpu().numpy()
            first = logits if first is None else first
            last = answer.add(logits)
            if last == text.sep_token_id:
                break
            ids = torch.cat([ids, ids.new_tensor([[last]])], dim=1)
        assert first is not None
        margins = answer.margins
        outputs = (logits_of_words(first),)
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


@dataclass(frozen=True)
class BlipTorchReference:
    """The torch models of a BLIP's run (see ``export.proof.interface.TorchReference``)."""

    dense: BlipAdapter | None
    slim: BlipAdapter
    plan: PruningPlan

    @classmethod
    def load(
        cls,
        dense: Path | None,
        slim: Path,
        plan: PruningPlan,
        artifact: EncoderArtifact,
        device: str,
    ) -> "BlipTorchReference":
        """Load both checkpoints in float32."""
        del artifact
        before = None if dense is None else _blip(dense, device)
        return cls(before, _blip(slim, device), plan)

    @property
    def places(self) -> tuple[Place, ...]:
        """Drop places; for retrieval the text's places occur twice: alone, and with cross-attention."""
        drops = [drop.place for drop in self.plan.drops]
        seen = [place for place in drops if place[0] == "vision"]
        read = [place for place in drops if place[0] == "language"]
        again = [("cross", number) for _, number in read]
        return (*seen, *read, *(again if self.slim.task == "retrieval" else ()))

    def prepare(self, example: Any) -> EncoderBatch:
        return (self.dense or self.slim).collate([example])

    def dense_runner(self) -> BlipTorch:
        """The dense model. Not valid after ``masked_runner``."""
        assert self.dense is not None
        return BlipTorch(self.dense)

    def slim_runner(self) -> BlipTorch:
        return BlipTorch(self.slim, self.plan.drops)

    def masked_runner(self) -> BlipTorch:
        assert self.dense is not None
        attach_dictionary(self.dense.model, self.plan.drops)
        fill_kept(self.dense, self.slim, self.dense.cuts(self.plan))
        return BlipTorch(self.dense, self.plan.drops, masks_of(self.dense, self.plan))

    def conclude(self, answers: list[Answered]) -> list[Answered]:
        """Retrieval: add the nearest text of each image and the nearest image of each text."""
        if self.slim.task != "retrieval":
            return answers
        return ranked(answers)


def _blip(directory: Path, device: str) -> BlipAdapter:
    adapter = load_adapter(directory, device)
    if not isinstance(adapter, BlipAdapter):
        raise CompExportError(f"{directory} is no BLIP, and the plan is of one: pass another run")
    return adapter


VERIFICATION = Verification.of_graphs(BlipTorchReference.load, BlipGraphs)
