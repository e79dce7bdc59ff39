"""Keep the features of images that come again, by their content."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Seen:
    """Features of one image ``[T, d]``, and the tokens that the vision tower selected ``[k]``, if it does."""

    features: NDArray[np.floating]
    selected: NDArray[np.int64] | None

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.features.nbytes + (0 if self.selected is None else self.selected.nbytes)


def digests_of(pixels: NDArray[np.float32]) -> list[bytes]:
    """SHA-256 of each image ``[I, C, S, S]``."""
    return [hashlib.sha256(image.tobytes()).digest() for image in pixels]


class SeenImages:
    """The images that were used last, up to a number of bytes; threads may share it.

    Attributes:
        hits, misses: images that were and were not known.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._seen: OrderedDict[bytes, Seen] = OrderedDict()
        self._lock = threading.Lock()
        self.hits = self.misses = 0

    def of(
        self, pixels: NDArray[np.float32], see: Callable[[NDArray[np.float32]], list[Seen]]
    ) -> list[Seen]:
        """Return the features of images ``[I, C, S, S]``; ``see`` computes those that are not known."""
        keys = digests_of(pixels)
        known = {key: seen for key in keys if (seen := self._get(key)) is not None}
        fresh = [place for place, key in enumerate(keys) if key not in known]
        if fresh:
            for place, seen in zip(fresh, see(pixels[fresh]), strict=True):
                known[keys[place]] = seen
                self._put(keys[place], seen)
        return [known[key] for key in keys]

    def _get(self, key: bytes) -> Seen | None:
        with self._lock:
            seen = self._seen.get(key)
            if seen is None:
                self.misses += 1
            else:
                self.hits += 1
                self._seen.move_to_end(key)
            return seen

    def _put(self, key: bytes, seen: Seen) -> None:
        with self._lock:
            if key in self._seen or seen.nbytes > self._max_bytes:
                return
            self._seen[key] = seen
            self._bytes += seen.nbytes
            while self._bytes > self._max_bytes:
                _, oldest = self._seen.popitem(last=False)
                self._bytes -= oldest.nbytes
