"""Names of tensors in checkpoints: of a LLaVA in either key layout, and of a token dictionary."""

from comp.plan import Part


def canonical_name(stored: str) -> str:
    """Return the name that transformers 5 gives a tensor in memory.

    The hub's ``language_model.model.layers.0…`` and ``vision_tower.vision_model.encoder…``, and the
    mixture that transformers 5 saves, become ``model.language_model.layers.0…`` and
    ``model.vision_tower.encoder…``; the head is ``lm_head.weight``.
    """
    name = stored.removeprefix("model.")
    for old, new in (
        ("language_model.lm_head.", "lm_head."),
        ("language_model.model.", "language_model."),
        ("vision_tower.vision_model.", "vision_tower."),
    ):
        if name.startswith(old):
            name = new + name[len(old) :]
    return name if name.startswith("lm_head.") else f"model.{name}"


DICTIONARY = "token_dictionary"  # the submodule of a model
ENTRIES = f"{DICTIONARY}.entries"


def projection_of(part: Part) -> str:
    """Return the name of the projection of a part's tokens to the width of the entries, if they differ."""
    return f"{DICTIONARY}.projections.{part}.weight"
