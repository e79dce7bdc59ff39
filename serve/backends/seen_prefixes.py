"""Keep the caches of the prompts that came last, for prompts that begin with the same tokens and images."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST_TOKENS = 16  # a shorter beginning is read faster than its caches are copied


@dataclass(frozen=True)
class PromptKey:
    """The tokens and images of a prompt: its caches depend on nothing else.

    Attributes:
        ids: tokens ``[N]``, image tokens expanded.
        images: SHA-256 of the pixels of each image.
        begins: position of the first token of each image.
    """

    ids: NDArray[np.int64]
    images: tuple[bytes, ...]
    begins: tuple[int, ...]

    def common(self, other: "PromptKey") -> int:
        """Number of tokens that both begin with; an image is the same if its pixels are."""
        shorter = min(self.ids.size, other.ids.size)
        differ = np.flatnonzero(self.ids[:shorter] != other.ids[:shorter])
        same = int(differ[0]) if differ.size else shorter
        for begins, mine, theirs in zip(self.begins, self.images, other.images, strict=False):
            if mine != theirs:
                same = min(same, begins)
        return same


@dataclass(frozen=True)
class Beginning:
    """The caches of the first ``held`` tokens of a prompt."""

    caches: tuple[Any, ...]
    held: int


class SeenPrefixes:
    """The prompts that were used last, up to a number of bytes; threads may share it.

    Attributes:
        hits, queries: tokens of prompts whose caches were known, and all.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._seen: OrderedDict[int, tuple[PromptKey, tuple[Any, ...], int]] = OrderedDict()
        self._numbers = count()
        self._lock = threading.Lock()
        self.hits = self.queries = 0

    def beginning_of(self, prompt: PromptKey) -> Beginning | None:
        """Return the caches of the longest known beginning; it leaves one token at least to be read."""
        with self._lock:
            best, held = None, 0
            for number, (key, _, _) in self._seen.items():
                common = min(prompt.common(key), prompt.ids.size - 1)
                if common > held:
                    best, held = number, common
            self.queries += prompt.ids.size
            if best is None or held < LEAST_TOKENS:
                return None
            self.hits += held
            self._seen.move_to_end(best)
            return Beginning(self._seen[best][1], held)

    def keep(self, prompt: PromptKey, caches: Sequence[Any], nbytes: int) -> None:
        """Keep the caches of a prompt; those of its beginnings are forgotten.

        Later tokens may be written after those of the prompt, not over them.
        """
        if nbytes > self._max_bytes:
            return
        with self._lock:
            for number, (key, _, _) in list(self._seen.items()):
                if key.ids.size == prompt.common(key):
                    self._forget(number)
            self._seen[next(self._numbers)] = (prompt, tuple(caches), nbytes)
            self._bytes += nbytes
            while self._bytes > self._max_bytes:
                self._forget(next(iter(self._seen)))

    def _forget(self, number: int) -> None:
        _, _, nbytes = self._seen.pop(number)
        self._bytes -= nbytes
