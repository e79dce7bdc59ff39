"""What the tensors of a token dictionary are called in checkpoints; needs no torch."""

from comp.plan import Part

DICTIONARY = "token_dictionary"  # the submodule of a model
ENTRIES = f"{DICTIONARY}.entries"


def projection_of(part: Part) -> str:
    """The projection of a part's tokens to the width of the entries, where that is another."""
    return f"{DICTIONARY}.projections.{part}.weight"
