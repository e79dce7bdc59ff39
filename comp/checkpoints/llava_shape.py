"""Sizes of a vision-language model, read from its ``config.json`` alone, without torch or transformers.

A model is an image tower, a connector and a decoder; ``model_parts`` has how each family writes them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from comp.checkpoints.connector_shape import ConnectorShape
from comp.checkpoints.decoder_shape import decoder_shape
from comp.checkpoints.encoder_shape import PACKAGED
from comp.checkpoints.locate import ALIASES, EMBEDDED, read_config, resolve_model
from comp.checkpoints.model_parts import PARTS_OF
from comp.checkpoints.pruning_entry import PartSizes, PruningEntry
from comp.checkpoints.shapes import (
    DecoderShape,
    TowerShape,
    planned_blocks,
)
from comp.checkpoints.tower_shape import tower_shape
from comp.checkpoints.tying import may_be_tied
from comp.errors import CompExportError
from comp.plan import DropPlan, ImageSelection, PruningPlan
from comp.registry.families import family_called, family_of

DENSE_TYPE = "llava"
SLIM_TYPE = "comp_llava"
DROP_SHARES = (0.25, 0.5, 0.75)  # of the depth


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model, dense or slim.

    Attributes:
        vision: all blocks of the vision tower.
        vision_used_layers: tower blocks up to the last feature layer; later ones are never run.
        connector: what maps the tower's features to the width of the decoder.
        tie_word_embeddings: the flag; a checkpoint with a separate output layer keeps it nevertheless.
        drops: token drops (empty for a dense model).
        image_selection: selection of image tokens after the tower; ``None``: all.
    """

    vision: TowerShape
    text: DecoderShape
    connector: ConnectorShape
    vision_used_layers: int
    keeps_class_token: bool
    tie_word_embeddings: bool
    drops: tuple[DropPlan, ...] = ()
    image_selection: ImageSelection | None = None

    @property
    def drop_layers(self) -> tuple[int, ...]:
        """Decoder blocks after which CoMP drops tokens: 8, 16 and 24 of 32."""
        places = sorted({max(1, round(share * self.num_layers)) for share in DROP_SHARES})
        return tuple(place for place in places if place < self.num_layers)

    @property
    def num_layers(self) -> int:
        """Number of language blocks."""
        return len(self.text.blocks)

    @property
    def used_tower(self) -> TowerShape:
        """The vision tower with only the blocks that run."""
        return self.vision.first(self.vision_used_layers)

    @property
    def tower_tokens(self) -> int:
        """Tokens of one image that the vision tower gives."""
        return self.vision.num_patches + self.keeps_class_token

    @property
    def all_image_tokens(self) -> int:
        """Tokens of one image in the language model without image selection."""
        return self.connector.tokens(self.tower_tokens)

    @property
    def image_tokens(self) -> int:
        """Tokens of one image in the language model."""
        selection = self.image_selection
        return self.all_image_tokens if selection is None else selection.count

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str = "config.json") -> "ModelShape":
        """Read the sizes from a configuration as JSON holds it; ``where`` names it in errors.

        Raises:
            CompExportError: it is of another family, or has an unsupported part.
        """
        kind = config.get("model_type")
        family = family_of(kind if isinstance(kind, str) else None)
        if family is None or family.name not in PARTS_OF:
            known = ", ".join(PARTS_OF)
            raise CompExportError(
                f"{where}: model_type is {kind!r}, not one of {known}: pass --model of such a checkpoint"
            )
        parts = PARTS_OF[family.name](config, where)
        pruning = PruningEntry.read(config, where)
        return cls(
            text=decoder_shape(parts.text, pruning.language or PartSizes(), where),
            vision=tower_shape(
                parts.vision, parts.tower, pruning.vision or PartSizes(), where, parts.final_norm
            ),
            connector=parts.connector,
            vision_used_layers=max(parts.feature_layers),
            keeps_class_token=parts.keeps_class_token,
            tie_word_embeddings=may_be_tied(config),
            drops=pruning.drops or (),
        ).selecting(pruning.image_selection)

    def with_plan(self, plan: PruningPlan) -> "ModelShape":
        """Return the sizes after applying ``plan`` to this dense model.

        Raises:
            CompExportError: the plan was made for another model.
        """
        family = family_called(plan.family)
        if family is None or not family.reads_image_tokens:
            raise CompExportError(
                f"that is a plan of a {plan.family}, and the model is a llava: pass the plan of a llava"
            )
        vision, text = self.vision, self.text
        language = planned_blocks(text.blocks, plan.part("language"), text.group_size)
        return replace(
            self.selecting(plan.image_selection),
            vision=replace(vision, blocks=planned_blocks(vision.blocks, plan.part("vision"))),
            text=replace(text, blocks=language),
            drops=plan.drops,
        )

    def selecting(self, selection: ImageSelection | None) -> "ModelShape":
        """Return the sizes with this selection of image tokens after the tower.

        Raises:
            CompExportError: the tower gives another number of tokens, or no tower block is used whose
                attention could select.
        """
        if selection is None:
            return self
        if selection.tower_tokens != self.tower_tokens:
            raise CompExportError(
                f"the plan's image_selection is of {selection.tower_tokens} tokens of an image, the "
                f"model's tower gives {self.tower_tokens}: pass the --model that the plan was made for"
            )
        if self.connector.shuffle > 1:
            raise CompExportError(
                "image tokens are chosen one by one, and the model's connector joins "
                f"{self.connector.shuffle**2} neighbours to one token: choose another --method"
            )
        if self.vision_used_layers == 0:
            raise CompExportError(
                "image tokens are chosen by the attention of the tower's last block that is used, and "
                "vision_feature_layer leaves none: choose another --method"
            )
        return replace(self, image_selection=selection)


def read_shape(model: str) -> ModelShape:
    """Return the sizes of ``--model``: an embedded model, an alias, a directory or a hub id.

    Only ``config.json`` is read. The package contains those of the aliases, so that ``llava-7b`` needs
    neither weights nor a network.

    Raises:
        CompExportError: there is no such model, or it is not a LLaVA-1.5.
    """
    return ModelShape.from_config(config_of(model), model)


def config_of(model: str) -> dict[str, Any]:
    """Return the configuration of ``--model``: packaged, in a directory, or on the hub.

    Raises:
        CompExportError: there is no such model.
    """
    if model in (*ALIASES, *PACKAGED):
        packaged = files("comp") / "models" / "configs" / f"{model}.json"
        config: dict[str, Any] = json.loads(packaged.read_text(encoding="utf-8"))
        return config
    if model in EMBEDDED or Path(model).is_dir() or model.count("/") != 1:
        return read_config(resolve_model(model))
    return _hub_config(model)


def _hub_config(repository: str) -> dict[str, Any]:
    """Download ``config.json`` of a repository on the hub, without its weights."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        path = Path(hf_hub_download(repository, "config.json"))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CompExportError(
            f"no config.json for {repository!r} ({reason}): check the id, or pass --model DIR"
        ) from error
    return read_config(path.parent)
