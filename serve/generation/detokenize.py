"""Convert tokens to text as they are generated, and stop at stop strings."""

from collections.abc import Sequence
from typing import Protocol

_UNFINISHED = "\ufffd"  # shown by byte-level tokenizers for an incomplete character


class Decoder(Protocol):
    """Decodes tokens to text."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...


class TextStream:
    """The text of one answer, token by token.

    A stop string may begin and end within tokens. Text that may be its beginning is held back until that
    is decided.
    """

    def __init__(self, tokenizer: Decoder, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._shown = ""
        self.text = ""
        self.stopped = False

    def add(self, token_id: int) -> str:
        """Add a token; return the text that can be shown now (may be empty)."""
        self._ids.append(token_id)
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True).lstrip()
        places = [place for word in self._stop if (place := text.find(word)) >= 0]
        if places:
            self.stopped = True
            text = text[: min(places)].rstrip()
            return self._show(text, text)
        return self._show(text, self._settled(text))

    def finish(self) -> str:
        """End the text: return what was held back, and finish ``text``."""
        self.text = self.text.rstrip()
        return self._show(self.text, self.text)

    def _show(self, text: str, safe: str) -> str:
        self.text = text
        if not safe.startswith(self._shown):
            # The decoder's clean-up changed text that was shown already; the record has the whole text.
            return ""
        fresh = safe[len(self._shown) :]
        self._shown = safe
        return fresh

    def _settled(self, text: str) -> str:
        """The text without an end that may still change, begin a stop string or be stripped."""
        text = text.rstrip(_UNFINISHED)
        longest = max((len(word) for word in self._stop), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(word.startswith(text[-size:]) for word in self._stop):
                text = text[:-size]
                break
        return text.rstrip()
