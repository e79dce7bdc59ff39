"""The base of all trials: tiny random checkpoints, their artifacts, plans, and right answers."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comp.checkpoints.llava_shape import ModelShape
from comp.flops.llava import llava_macs
from comp.plan import BlockPlan, PruningPlan, Workload
from comp.runs import RUN_VERSION
from tests.fuzz.families import FAMILIES, Answers

PICTURE = "picture.png"


def make_base(folder: Path) -> None:
    """Write everything below ``folder``: of each family ``checkpoint/`` and ``onnx-dense/``."""
    from export.exporter import Origin, export_artifact
    from tests.comp.small_clip import random_plan
    from tests.serve.random_llava import DROPS, noise

    folder.mkdir(parents=True)
    noise(0).save(folder / PICTURE)
    for name, family in FAMILIES.items():
        checkpoint = folder / name / "checkpoint"
        family.make(checkpoint)
        export_artifact(checkpoint, folder / name / "onnx-dense", Origin("tiny"))
    llava = folder / "llava"
    config = json.loads((llava / "checkpoint" / "config.json").read_text(encoding="utf-8"))
    plan = _plan(ModelShape.from_config(config))
    plan.save(llava / "plan.json")
    dropping = plan.model_copy(update={"drops": DROPS})
    dropping.save(llava / "dropping.json")
    export_artifact(llava / "checkpoint", llava / "onnx", Origin.of_plan(dropping), plan=dropping)
    random_plan(3).model_copy(update={"drops": ()}).save(folder / "clip" / "plan.json")
    record = {"version": RUN_VERSION, "model": "tiny", "rate": 0.1, "seed": 0}
    (llava / "run.json").write_text(json.dumps(record), encoding="utf-8")


def _plan(shape: ModelShape) -> PruningPlan:
    """Return a plan without some heads and channels of every second block."""
    blocks = []
    for index, block in enumerate(shape.text.blocks):
        groups, channels, some = block.heads, block.channels, index % 2
        blocks.append(
            BlockPlan(
                part="language",
                index=index,
                num_attention_heads=groups * shape.text.group_size,
                num_key_value_heads=groups,
                intermediate_size=channels,
                kept_key_value_heads=tuple(range(groups - some)),
                kept_channels=tuple(range(0, channels, 1 + some)),
            )
        )
    work = Workload(image_tokens=shape.tower_tokens, text_tokens=20)
    dense = llava_macs(shape, work.image_tokens, work.text_tokens).macs
    plan = PruningPlan(
        family="llava",
        model="tiny",
        method="comp",
        rate=0.0,
        workload=work,
        macs_dense=dense,
        macs=dense,
        blocks=tuple(blocks),
    )
    macs = llava_macs(shape, work.image_tokens, work.text_tokens, plan).macs
    return plan.model_copy(update={"macs": macs, "rate": 1 - macs / dense})


def copied(source: Path, target: Path) -> Path:
    """A folder with the same files, which are links: one is replaced before it is changed."""
    shutil.copytree(source, target, copy_function=os.link)
    return target


def replaced(path: Path, data: bytes | str) -> None:
    """Give a file other contents; what it was linked to stays."""
    path.unlink(missing_ok=True)
    if isinstance(data, str):
        path.write_text(data, encoding="utf-8", errors="surrogatepass")
    else:
        path.write_bytes(data)


def unchanged(model: Any) -> None:
    """Leave a model as it is."""


@dataclass(frozen=True)
class Base:
    """The folder of ``make_base``, and its right answers."""

    folder: Path
    known: dict[str, Answers] = field(default_factory=dict)

    @property
    def picture(self) -> Path:
        return self.folder / PICTURE

    def of(self, family: str) -> Path:
        return self.folder / family

    def product_answers(self, family: str, artifact: Path) -> Answers:
        """Return the answers of an artifact's engine."""
        return FAMILIES[family].product_answers(artifact, self.picture)

    def once(self, family: str, artifact: str) -> Answers:
        """Return the answers of an artifact of the base: ``onnx`` or ``onnx-dense``."""
        name = f"{family}/{artifact}"
        if name not in self.known:
            self.known[name] = self.product_answers(family, self.folder / name)
        return self.known[name]

    def right(
        self, family: str, checkpoint: Path, change: Callable[[Any], None] = unchanged
    ) -> Answers:
        """Return transformers' answers for a checkpoint after a function has changed the model."""
        from PIL import Image

        with Image.open(self.picture) as picture:
            return FAMILIES[family].right(checkpoint, picture, change)
