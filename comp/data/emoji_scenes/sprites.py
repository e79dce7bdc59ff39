"""The 168 Noto emoji pictures that EmojiScenes is painted with (see ``emoji/ATTRIBUTION.md``)."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from PIL import Image

CATEGORY_PLURALS = {
    "animal": "animals",
    "plant": "plants",
    "food": "foods",
    "vehicle": "vehicles",
    "object": "objects",
    "nature": "nature things",
}


@dataclass(frozen=True)
class Sprite:
    """One picture: its name (may hold a space), its category, and a 64x64 RGBA image."""

    name: str
    category: str
    image: Image.Image


@cache
def sprites() -> dict[str, Sprite]:
    """All sprites by name, in the sheet's order."""
    folder = files("comp.data") / "emoji"
    labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    with (folder / "sheet.png").open("rb") as stream:
        sheet = Image.open(stream).convert("RGBA")
    tile = labels["tile"]
    by_name = {}
    for entry in labels["emoji"]:
        x, y = entry["column"] * tile, entry["row"] * tile
        image = sheet.crop((x, y, x + tile, y + tile))
        by_name[entry["name"]] = Sprite(entry["name"], entry["category"], image)
    return by_name


@cache
def names_by_category() -> dict[str, tuple[str, ...]]:
    """The names in each of the six categories."""
    grouped: dict[str, list[str]] = {category: [] for category in CATEGORY_PLURALS}
    for sprite in sprites().values():
        grouped[sprite.category].append(sprite.name)
    return {category: tuple(names) for category, names in grouped.items()}
