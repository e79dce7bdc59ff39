"""Cache lengths: the number of tokens in the caches of each segment of the decoder.

A segment is the blocks between two places where tokens are dropped; all its caches are equally long.
"""

from comp.plan import keep_count
from export.artifact.llava_manifest import DecoderShape

PAST, PRESENT = "past_key_values.", "present."  # prefixes of cache inputs and outputs
CROSS = "cross."  # prefix of a BLIP decoder's keys and values of what it looks at
LOGITS = "logits"  # the output of the last token
CACHE_LENGTHS = "cache_lengths"  # input: filled places of the caches: [segments, B]


def segments_of(shape: DecoderShape) -> tuple[int, ...]:
    """The segment of each decoder block."""
    places = [drop.after_layer for drop in shape.drops]
    return tuple(sum(place <= layer for place in places) for layer in range(shape.num_layers))


def cached_tokens(shape: DecoderShape, vision: int, text: int) -> tuple[int, ...]:
    """Tokens that a prompt adds to the caches of each segment.

    Args:
        shape: the decoder with its drops.
        vision, text: tokens of a kind in the prompt; a decode step has 0 and 1.
    """
    counts = [vision + text]
    for drop in shape.drops:
        vision = keep_count(vision, drop.vision_keep_ratio)
        text = keep_count(text, drop.text_keep_ratio)
        counts.append(vision + text)
    return tuple(counts)
