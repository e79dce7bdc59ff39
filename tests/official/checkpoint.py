"""What an official checkpoint is: its files as they are published, of the sizes they have there."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Files = Mapping[str, Any]  # by name: what a JSON file holds, or the text of any other
# Names of the weights: as published in 2022 and 2023, as modules are called by transformers 4.52 to 4.57,
# or as the transformers that is installed saves them.
Names = Literal["published", "modules", "saved"]


@dataclass(frozen=True)
class Spelling:
    """One way in which a checkpoint's files are written.

    Args:
        name: of the spelling, for the table.
        files: all but weights and vocabulary, of the published sizes.
        names: of the tensors in the weights' files.
        shards: files of weights.
        vocabulary: files that hold the vocabulary.
        every_verb: pruned, exported, verified and run; otherwise exported as it is and compared.
    """

    name: str
    files: Files
    names: Names = "published"
    shards: int = 1
    vocabulary: tuple[str, ...] = ("tokenizer.json",)
    every_verb: bool = True

    @property
    def config(self) -> dict[str, Any]:
        return self.files["config.json"]


@dataclass(frozen=True)
class Official:
    """A known checkpoint, and the spellings of it that are in circulation."""

    hub_id: str
    family: Literal["llava", "blip", "clip"]
    task: str  # for the table
    spellings: tuple[Spelling, ...]


@dataclass(frozen=True)
class Refused:
    """A known checkpoint that belongs to no supported family."""

    hub_id: str
    kind: str  # for the table
    configs: tuple[Mapping[str, Any], ...]  # its former config.json
    message: str  # a part of the message


def joined(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Objects in one, the later ones over the earlier, inner objects joined likewise."""
    whole: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            both = isinstance(value, dict) and isinstance(whole.get(name), dict)
            whole[name] = joined(whole[name], value) if both else value
    return whole
