"""Suggestions for a name that nothing has."""

import difflib
from collections.abc import Iterable

LIKE_ENOUGH = 0.6  # similarity (``difflib``) from which a name is suggested


def suggestion(word: str, names: Iterable[str]) -> str:
    """Return ``did you mean 'NAME'?`` with the most similar name; empty if none is similar."""
    by_lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=LIKE_ENOUGH)
    return f"did you mean {by_lower[near[0]]!r}?" if near else ""


def unknown_name(word: str, names: Iterable[str]) -> str:
    """Return the error for a word that is none of the names."""
    known = list(names)
    hint = suggestion(word, known)
    return f"{word!r} is unknown: {hint + ' ' if hint else ''}choose from {', '.join(known)}"
