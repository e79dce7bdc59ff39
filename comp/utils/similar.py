"""Suggestions for a name that nothing has."""

from collections.abc import Iterable

LETTERS_AN_ERROR = 4  # letters of a word for each error in it; shorter words may have one
SHORTEST = 3  # letters of a word that may have an error
BEGINNING = 4  # letters of a word that may be the beginning of a longer name


def suggestion(word: str, names: Iterable[str]) -> str:
    """Return ``did you mean 'NAME'?`` with the nearest name; empty if none is near.

    A name is near if the word is its beginning, or has few errors (``errors_between``). Capitals, and hyphens
    for underscores, are no errors.
    """
    typed, known = _plain(word), list(names)
    longer = [name for name in known if _plain(name).startswith(typed)]
    if longer and len(typed) >= BEGINNING:
        return f"did you mean {min(longer, key=len)!r}?"
    errors = {name: errors_between(typed, _plain(name)) for name in known}
    nearest = min(known, key=errors.__getitem__, default="")
    allowed = max(1, len(typed) // LETTERS_AN_ERROR) if len(typed) >= SHORTEST else 0
    return f"did you mean {nearest!r}?" if known and errors[nearest] <= allowed else ""


def errors_between(word: str, name: str) -> int:
    """Return the number of errors of typing that turn ``name`` into ``word``.

    An error leaves out, adds or replaces a letter, or swaps two neighbours (optimal string alignment).
    """
    before: list[int] = []
    last = list(range(len(name) + 1))
    for row, letter in enumerate(word, start=1):
        costs = [row]
        for column, other in enumerate(name, start=1):
            cost = min(last[column] + 1, costs[-1] + 1, last[column - 1] + (letter != other))
            swapped = (
                row > 1 and column > 1 and word[row - 2 : row] == name[column - 2 : column][::-1]
            )
            costs.append(min(cost, before[column - 2] + 1) if swapped else cost)
        before, last = last, costs
    return last[-1]


def unknown_name(word: str, names: Iterable[str]) -> str:
    """Return the error for a word that is none of the names."""
    known = list(names)
    hint = suggestion(word, known)
    return f"{word!r} is unknown: {hint + ' ' if hint else ''}choose from {', '.join(known)}"


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")
