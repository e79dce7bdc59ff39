"""Names of tensors in checkpoints: of a LLaVA in either key layout, and of a token dictionary."""

from collections.abc import Iterator

from comp.plan import Part
from comp.registry.families import FAMILIES
from comp.registry.family import Family

TOWER = "vision_tower."


def canonical_name(stored: str) -> str:
    """Return the name that transformers 5 gives a tensor in memory.

    The names are those of a LLaVA: the hub's ``language_model.model.layers.0…`` and
    ``vision_tower.vision_model.encoder…``, and the mixture that transformers 5 saves, become
    ``model.language_model.layers.0…`` and ``model.vision_tower.encoder…``; the head is ``lm_head.weight``.
    Those of an Idefics3, a SmolVLM or an InternVL become the same.
    """
    name = stored.removeprefix("model.")
    for old, new in (
        ("language_model.lm_head.", "lm_head."),
        ("language_model.model.", "language_model."),
        ("vision_tower.vision_model.", "vision_tower."),
        *(pair for family in FAMILIES for pair in family.prefixes),
    ):
        if name.startswith(old):
            name = new + name[len(old) :]
    if name.startswith((f"{TOWER}encoder.", f"{TOWER}embeddings.")):
        for old, new in (pair for family in FAMILIES for pair in family.tower_names):
            name = name.replace(old, new)
    return name if name.startswith("lm_head.") else f"model.{name}"


def name_in_torch(name: str, family: Family) -> str:
    """Return the name in torch of a tensor of a family, from its canonical name."""
    if name.startswith(f"model.{TOWER}"):
        for own, canonical in family.tower_names:
            name = name.replace(canonical, own)
    for own, canonical in family.prefixes:
        if name.startswith(f"model.{canonical}"):
            return f"model.{own}{name.removeprefix(f'model.{canonical}')}"
    return name


def with_bias(
    name: str, shape: tuple[int, ...], biased: bool = True
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of a weight and, if it has one, of its bias."""
    yield f"{name}.weight", shape
    if biased:
        yield f"{name}.bias", shape[:1]


DICTIONARY = "token_dictionary"  # the submodule of a model
ENTRIES = f"{DICTIONARY}.entries"


def projection_of(part: Part) -> str:
    """Return the name of the projection of a part's tokens to the width of the entries, if they differ."""
    return f"{DICTIONARY}.projections.{part}.weight"
