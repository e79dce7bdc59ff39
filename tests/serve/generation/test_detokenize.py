"""Text from tokens: stop strings across token borders, characters in several tokens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from serve.generation.detokenize import TextStream


@pytest.fixture(scope="module")
def tokenizer():
    """Byte level, one token a byte: the hardest case for streaming."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    result = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    result.decoder = decoders.ByteLevel()
    return result


def play(tokenizer, text, stop=()):
    stream = TextStream(tokenizer, stop)
    shown = []
    for token_id in tokenizer.encode(text).ids:
        shown.append(stream.add(token_id))
        if stream.stopped:
            break
    shown.append(stream.finish())
    return stream, shown


def test_stop_string_across_tokens_is_never_shown(tokenizer):
    stream, shown = play(tokenizer, "a fox END of it", ("END",))
    assert stream.stopped
    assert stream.text == "a fox"
    assert "".join(shown) == "a fox"
    assert not any("E" in part for part in shown)


def test_a_partial_stop_string_is_shown_after_it_fails(tokenizer):
    stream, shown = play(tokenizer, "an ENemy", ("END",))
    assert not stream.stopped
    assert "".join(shown) == "an ENemy"
    assert shown[3] == ""  # "E" may begin END


def test_the_earliest_stop_string_ends_the_text(tokenizer):
    stream, _ = play(tokenizer, "one; two. three", (".", ";"))
    assert stream.text == "one"


def test_characters_of_several_tokens_are_shown_whole(tokenizer):
    stream, shown = play(tokenizer, "añ🦊!")
    assert stream.text == "añ🦊!"
    assert [part for part in shown if part] == ["a", "ñ", "🦊", "!"]


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(alphabet="ab é🦊", max_size=14),
    stop=st.lists(st.text(alphabet="ab é", min_size=1, max_size=3), max_size=2),
)
def test_streamed_pieces_sum_to_the_text(tokenizer, text, stop):
    stream, shown = play(tokenizer, text, tuple(stop))
    assert "".join(shown) == stream.text
    settled = text.lstrip()
    # The stop that is complete first ends the text; of several complete at once, the longest.
    result = [(settled.find(w) + len(w), settled.find(w)) for w in stop if w in settled]
    assert stream.text == (settled[: min(result)[1]] if result else settled).rstrip()
