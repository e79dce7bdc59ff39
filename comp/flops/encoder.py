"""Count the exact multiply-accumulates of CLIP and BLIP from their sizes.

The rules are those of ``comp.flops.block``. Published figures are for different *compositions* of the same
parts: numbers of images, texts and passes. Each composition in this module lists its parts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from comp.checkpoints.encoder_shape import EncoderShape
from comp.checkpoints.shapes import TextShape
from comp.flops.block import Memory, Tokens, block_macs, norm_macs, tower_macs
from comp.plan import Place, Workload, images_of, keep_count

NLVR_LENGTH, CAPTION_LENGTH, RETRIEVAL_LENGTH = 36, 15, 35
QUESTION_LENGTH, ANSWER_LENGTH = 14, 5
QUESTIONS, ANSWERS = 32, 47  # in the published figure of question answering
QUEUE = 57_600  # embeddings of other pairs in the queue of contrastive training


@dataclass(frozen=True)
class Composition:
    """Multiply-accumulates of a figure by part; ``of`` describes what it counts."""

    name: str
    of: str
    parts: dict[str, int]

    @property
    def macs(self) -> int:
        return sum(self.parts.values())


def text_macs(
    shape: TextShape,
    length: int,
    memory: Memory | None = None,
    rows: int = 1,
    tokens: Tokens | None = None,
) -> int:
    """Multiply-accumulates of ``rows`` texts through a text model.

    Args:
        shape: the encoder or decoder.
        length: tokens of a text.
        memory: memory of cross-attention; ``None`` leaves cross-attention out.
        rows: number of texts; those with the same input in the memory share its keys and values.
        tokens: numbers of tokens in each block, if some are dropped.
    """
    seen = tokens or [(length, length)] * len(shape.blocks)
    blocks = sum(
        rows * block_macs(shape, block, *counts, memory)
        for block, counts in zip(shape.blocks, seen, strict=True)
    )
    keys = 0
    if memory is not None:
        heads = sum(sum(block.cross_heads) for block in shape.blocks)
        keys = 2 * memory.inputs * memory.tokens * memory.hidden_size * heads * shape.head_dim
    return norm_macs(shape, rows * length) + blocks + keys


def head_macs(shape: TextShape, length: int) -> int:
    """Multiply-accumulates of the language-model head on ``length`` tokens."""
    width = shape.hidden_size
    return length * width * (width + shape.vocab_size) + norm_macs(shape, length)


def tokens_by_block(layers: int, count: int, ratios: Mapping[int, float]) -> Tokens:
    """Numbers of tokens in the attention and in the FFN of each block, of ``count`` tokens that enter.

    ``ratios`` are the keep ratios by number of blocks passed. Tokens are dropped after the attention of the
    last of these blocks.
    """
    counts = []
    for passed in range(1, layers + 1):
        left = keep_count(count, ratios.get(passed, 1.0))
        counts.append((count, left))
        count = left
    return counts


def clip_macs(shape: EncoderShape, on: Workload, ratios: Mapping[Place, float]) -> dict[str, int]:
    """Multiply-accumulates by part of one image and one text through a CLIP with these keep ratios."""
    seen, read = _tokens_seen(shape, on, ratios)
    vision, text = shape.vision, shape.text
    return {
        "vision": tower_macs(vision, seen) + shape.projection * vision.hidden_size,
        "language": text_macs(text, on.text_tokens, tokens=read)
        + shape.projection * text.hidden_size,
    }


def blip_macs(shape: EncoderShape, on: Workload, ratios: Mapping[Place, float]) -> dict[str, int]:
    """Multiply-accumulates by part of one request of a BLIP with these keep ratios, as it is served.

    Retrieval: a text alone and one matching pass. Question: an answer of ``ANSWER_LENGTH`` tokens. Statement:
    two images, whose tokens ``on`` counts together. Cross-attention reads the image tokens that the tower
    leaves; a decoder of answers reads the question's tokens that its encoder leaves.
    """
    seen, read = _tokens_seen(shape, on, ratios)
    text, length = shape.text, on.text_tokens
    image = Memory(seen[-1][1], shape.vision.hidden_size)
    passed = text_macs(text, length, image, tokens=read)
    parts = {"vision": images_of(shape.task) * tower_macs(shape.vision, seen), "language": passed}
    if shape.task == "retrieval":
        alone = text_macs(text, length, tokens=read)
        return parts | {"language": alone, "matching": passed}
    if shape.task == "caption":
        return parts | {"lm_head": head_macs(text, length)}
    if shape.task == "statement":
        return parts | {"head": text.hidden_size * text.hidden_size + 2 * text.hidden_size}
    assert shape.decoder is not None
    answer = text_macs(shape.decoder, ANSWER_LENGTH, Memory(read[-1][1], text.hidden_size))
    return parts | {"decoder": answer, "lm_head": head_macs(shape.decoder, ANSWER_LENGTH)}


def usual_request(shape: EncoderShape, text_tokens: int | None = None) -> Workload:
    """Workload of one request of a model: the images of its task and a text.

    Args:
        shape: sizes of the model.
        text_tokens: tokens of the text; by default as in published figures.
    """
    usual = {
        "statement": NLVR_LENGTH,
        "caption": CAPTION_LENGTH,
        "question": QUESTION_LENGTH,
        "retrieval": RETRIEVAL_LENGTH,
    }
    length = shape.text.positions if shape.family == "clip" else usual[shape.task]
    images = images_of(shape.task) * shape.vision.tokens
    return Workload(
        image_tokens=images, text_tokens=text_tokens or min(length, shape.text.positions)
    )


def request_macs(
    shape: EncoderShape, on: Workload, ratios: Mapping[Place, float]
) -> dict[str, int]:
    """Multiply-accumulates by part of one request of a CLIP or a BLIP."""
    return (clip_macs if shape.family == "clip" else blip_macs)(shape, on, ratios)


def _tokens_seen(
    shape: EncoderShape, on: Workload, ratios: Mapping[Place, float]
) -> tuple[Tokens, Tokens]:
    """Tokens in the blocks of the tower, for one image, and in the blocks of the text model."""
    by_part = {
        part: {passed: ratio for (of, passed), ratio in ratios.items() if of == part}
        for part in ("vision", "language")
    }
    seen = on.image_tokens // images_of(shape.task)
    return (
        tokens_by_block(len(shape.vision.blocks), seen, by_part["vision"]),
        tokens_by_block(len(shape.text.blocks), on.text_tokens, by_part["language"]),
    )


def compositions(shape: EncoderShape) -> tuple[Composition, ...]:
    """Return the compositions of a model; the first is one request as it is served."""
    return _COMPOSITIONS[shape.family, shape.task](shape)


def _image(shape: EncoderShape) -> Memory:
    return Memory(shape.vision.tokens, shape.vision.hidden_size)


def _clip(shape: EncoderShape) -> tuple[Composition, ...]:
    length = shape.text.positions
    pair = {
        "vision": tower_macs(shape.vision) + shape.vision.hidden_size * shape.projection,
        "language": text_macs(shape.text, length) + shape.text.hidden_size * shape.projection,
    }
    queue = 4 * shape.projection * QUEUE
    training = {part: 2 * macs for part, macs in pair.items()} | {"queue": queue}
    return (
        Composition("pair", f"one image and one text of {length} tokens", pair),
        Composition(
            "published",
            f"the pair, once more in momentum encoders, and a queue of {QUEUE}, as in training",
            training,
        ),
    )


def _blip_retrieval(shape: EncoderShape) -> tuple[Composition, ...]:
    length = RETRIEVAL_LENGTH
    vision = tower_macs(shape.vision)
    alone = text_macs(shape.text, length)
    matching = text_macs(shape.text, length, _image(shape))
    width = shape.projection * shape.text.hidden_size
    return (
        Composition(
            "pair",
            f"one image, one text of {length} tokens, one matching pass",
            {"vision": vision, "language": alone, "matching": matching},
        ),
        Composition(
            "published",
            "image and text, once more in momentum encoders, three matching passes, projections and "
            f"a queue of {QUEUE}, as in training",
            {
                "vision": 2 * vision,
                "language": 2 * alone,
                "matching": 3 * matching,
                "projections": 4 * width,
                "queue": 4 * shape.projection * QUEUE,
            },
        ),
    )


def _blip_question(shape: EncoderShape) -> tuple[Composition, ...]:
    assert shape.decoder is not None
    vision, decoder = tower_macs(shape.vision), shape.decoder
    question = Memory(QUESTION_LENGTH, shape.text.hidden_size)

    def parts(questions: int, answers: int) -> dict[str, int]:
        encoded = text_macs(shape.text, QUESTION_LENGTH, _image(shape), questions)
        answer = text_macs(decoder, ANSWER_LENGTH, question, answers)
        head = answers * head_macs(decoder, ANSWER_LENGTH)
        return {"vision": vision, "language": encoded, "decoder": answer, "lm_head": head}

    tokens = f"of {QUESTION_LENGTH} tokens"
    return (
        Composition(
            "question",
            f"one image, one question {tokens}, one answer of {ANSWER_LENGTH}",
            parts(1, 1),
        ),
        Composition(
            "published",
            f"one image, {QUESTIONS} questions {tokens}, {ANSWERS} answers of {ANSWER_LENGTH}, as in "
            "training",
            parts(QUESTIONS, ANSWERS),
        ),
    )


def _blip_caption(shape: EncoderShape) -> tuple[Composition, ...]:
    parts = {
        "vision": tower_macs(shape.vision),
        "language": text_macs(shape.text, CAPTION_LENGTH, _image(shape)),
        "lm_head": head_macs(shape.text, CAPTION_LENGTH),
    }
    return (Composition("published", f"one image, a caption of {CAPTION_LENGTH} tokens", parts),)


def _blip_statement(shape: EncoderShape) -> tuple[Composition, ...]:
    width = shape.text.hidden_size
    parts = {
        "vision": 2 * tower_macs(shape.vision),
        "language": text_macs(shape.text, NLVR_LENGTH, _image(shape)),
        "head": width * width + 2 * width,
    }
    of = f"two images, one text of {NLVR_LENGTH} tokens with two cross-attention branches"
    return (Composition("published", of, parts),)


_COMPOSITIONS = {
    ("clip", "retrieval"): _clip,
    ("blip", "retrieval"): _blip_retrieval,
    ("blip", "question"): _blip_question,
    ("blip", "caption"): _blip_caption,
    ("blip", "statement"): _blip_statement,
}
