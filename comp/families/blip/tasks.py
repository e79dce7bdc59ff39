"""Adapt BLIP for questions, captions and statements about two images (``retrieval`` has its own file)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from comp.adapter import DistillationTargets, Forwarding, Observer, Scored
from comp.data.example import AnyExample, PairExample
from comp.errors import CompExportError
from comp.families.blip.adapter import MODES, BlipAdapter, one_image
from comp.families.blip.forward import encoded_by, memories_of, said_by, seen_by
from comp.families.blip.nlvr import BlipForNlvr2
from comp.families.blip.slim import CompBlipForConditionalGeneration, CompBlipForQuestionAnswering
from comp.families.blip.text_forward import Memory
from comp.families.encoder.adapter import EncoderBatch, kept_shares
from comp.plan import STATEMENT_IMAGES

IGNORE = -100


@dataclass(frozen=True)
class QuestionBatch(EncoderBatch):
    """Questions with their answers ``[B, A]``, with start and end tokens, padded."""

    answer_ids: Tensor
    answer_mask: Tensor


class BlipQuestions(BlipAdapter):
    """Adapter of ``BlipForQuestionAnswering``; an answer is right if greedy decoding gives exactly it."""

    task = "question"
    architecture = "BlipForQuestionAnswering"
    slim_type = CompBlipForQuestionAnswering
    reads_all = True

    def collate(self, examples: Sequence[AnyExample]) -> QuestionBatch:
        questions = one_image(examples, "questions")
        ids, mask = self.texts([each.question for each in questions], "a question")
        answers = self.texts([each.answer for each in questions], "an answer")
        return QuestionBatch(self.pixels([each.image for each in questions]), ids, mask, *answers)

    def score(
        self, batch: QuestionBatch, forwarding: Forwarding, observer: Observer | None = None
    ) -> Scored:
        batch = batch.to(self.device)
        seen = seen_by(self.model, batch.pixel_values, forwarding, observer)
        memories = memories_of(seen, 1)
        question = encoded_by(
            self.model, batch.input_ids, batch.attention_mask, memories, forwarding, observer
        )
        inputs, mask, labels = _shifted(self, batch.answer_ids, batch.answer_mask)
        logits = said_by(self.model, inputs, mask, Memory.of_text(question), forwarding, observer)
        right = (logits.argmax(-1) == labels) | (labels == IGNORE)
        shares = kept_shares("vision", seen.encoded) | kept_shares("language", question)

        def targets() -> DistillationTargets:
            return DistillationTargets((logits[labels != IGNORE],), (seen.tokens, question.tokens))

        terms = int((labels != IGNORE).sum())
        return Scored(_token_loss(logits, labels), lambda: right.all(1), shares, targets, terms)


class BlipCaptions(BlipAdapter):
    """Adapter of ``BlipForConditionalGeneration``; each token of a caption is judged separately."""

    task = "caption"
    architecture = "BlipForConditionalGeneration"
    slim_type = CompBlipForConditionalGeneration
    modes = tuple(mode for mode in MODES if mode.tokens != "text")
    default_modes = tuple(mode.name for mode in modes)

    def collate(self, examples: Sequence[AnyExample]) -> EncoderBatch:
        return self.captioned(one_image(examples, "captions"))

    def score(
        self, batch: EncoderBatch, forwarding: Forwarding, observer: Observer | None = None
    ) -> Scored:
        batch = batch.to(self.device)
        seen = seen_by(self.model, batch.pixel_values, forwarding, observer)
        inputs, mask, labels = _shifted(self, batch.input_ids, batch.attention_mask)
        logits = said_by(self.model, inputs, mask, Memory.of_seen(seen), forwarding, observer)
        said = labels != IGNORE
        right = logits.argmax(-1)[said] == labels[said]
        return Scored(
            _token_loss(logits, labels),
            lambda: right,
            kept_shares("vision", seen.encoded),
            lambda: DistillationTargets((logits[said],), (seen.tokens,)),
            int(said.sum()),
        )


@dataclass(frozen=True)
class PairBatch(EncoderBatch):
    """Two images a statement, ``pixel_values [2B, C, S, S]``; ``labels [B]``, 1 where it is true."""

    labels: Tensor


class BlipStatements(BlipAdapter):
    """Adapter of ``BlipForNlvr2``; the two images of a statement are two rows of the tower's input."""

    task = "statement"
    architecture = "BlipForNlvr2"
    slim_type = BlipForNlvr2
    images = STATEMENT_IMAGES

    def collate(self, examples: Sequence[AnyExample]) -> PairBatch:
        pairs = [_pair(example) for example in examples]
        ids, mask = self.texts([pair.statement for pair in pairs], "a statement")
        labels = torch.tensor([int(pair.answer) for pair in pairs])
        pixels = self.pixels([image for pair in pairs for image in pair.images])
        return PairBatch(pixels, ids, mask, labels)

    def score(
        self, batch: PairBatch, forwarding: Forwarding, observer: Observer | None = None
    ) -> Scored:
        batch = batch.to(self.device)
        seen = seen_by(self.model, batch.pixel_values, forwarding, observer)
        memories = memories_of(seen, STATEMENT_IMAGES)
        read = encoded_by(
            self.model, batch.input_ids, batch.attention_mask, memories, forwarding, observer
        )
        logits = self.model.cls_head(read.tokens.states[:, 0]).float()
        shares = kept_shares("vision", seen.encoded) | kept_shares("language", read)
        right = logits.argmax(-1) == batch.labels
        targets = DistillationTargets((logits,), (seen.tokens, read.tokens))
        loss = F.cross_entropy(logits, batch.labels)
        return Scored(loss, lambda: right, shares, lambda: targets, len(logits))


def _pair(example: AnyExample) -> PairExample:
    if isinstance(example, PairExample) and len(example.images) == STATEMENT_IMAGES:
        return example
    count = len(example.images) if isinstance(example, PairExample) else 1
    raise CompExportError(
        f"an example with {count} image{'s' * (count != 1)}, and a BLIP for statements takes two: give "
        "it pairs of images"
    )


def _shifted(adapter: BlipAdapter, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of a decoder, their mask, and labels with the end of text, each ``[B, L-1]``.

    The first token of a text is replaced by the decoder's start token.
    """
    inputs = ids[:, :-1].clone()
    inputs[:, 0] = adapter.model.config.text_config.bos_token_id
    labels = ids[:, 1:].masked_fill(mask[:, 1:] == 0, IGNORE)
    return inputs, mask[:, :-1], labels


def _token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE)
