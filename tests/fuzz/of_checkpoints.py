"""Hostile checkpoints and plans: transformers gives the right answer for the changed files."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.base import Base, copied, replaced
from tests.fuzz.families import FAMILIES, Answers
from tests.fuzz.making import Trial, nothing_else
from tests.fuzz.mutations import break_bytes, break_json, break_text, change_json, to_json


def _checkpoint(
    rng: Random, base: Base, scratch: Path, pick: Callable[[Path], bool]
) -> tuple[str, Path, Path]:
    """A family, a copy of its checkpoint, and one of the files there."""
    family = rng.choice(("llava", "llava", "clip", "blip"))
    folder = copied(base.of(family) / "checkpoint", scratch / "checkpoint")
    files = sorted(path for path in folder.iterdir() if pick(path))
    return family, folder, rng.choice(files)


def _of_checkpoint(
    base: Base, scratch: Path, family: str, folder: Path, path: Path, deed: str
) -> Trial:
    """transformers' answer for the same files is right."""

    def product() -> Answers:
        from export.exporter import Origin, export_artifact

        export_artifact(folder, scratch / "onnx", Origin("changed"))
        return base.product_answers(family, scratch / "onnx")

    return Trial(
        f"{family}, {path.name}: {deed}",
        product,
        lambda: base.right(family, folder),
        base.once(family, "onnx-dense"),
        (path.name, str(scratch), "not finite numbers"),
    )


def settings(rng: Random, base: Base, scratch: Path) -> Trial:
    """JSON of a checkpoint but its tokenizer: damaged, or with other values."""
    family, folder, path = _checkpoint(
        rng, base, scratch, lambda path: path.suffix == ".json" and path.name != "tokenizer.json"
    )
    return _of_checkpoint(base, scratch, family, folder, path, _other_json(rng, path))


def _other_json(rng: Random, path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if rng.random() < 0.15:
        changed, deed = break_text(rng, text)
        replaced(path, changed)
        return deed
    value, deed = change_json(rng, json.loads(text))
    replaced(path, to_json(value))
    return deed


def tokenizer(rng: Random, base: Base, scratch: Path) -> Trial:
    """``tokenizer.json``: other rules, other tokens, damage."""
    family, folder, path = _checkpoint(
        rng, base, scratch, lambda path: path.name == "tokenizer.json"
    )
    return _of_checkpoint(base, scratch, family, folder, path, _other_json(rng, path))


def template(rng: Random, base: Base, scratch: Path) -> Trial:
    """The chat template, as its own file."""
    folder = copied(base.of("llava") / "checkpoint", scratch / "checkpoint")
    path = folder / "chat_template.jinja"
    text = path.read_text(encoding="utf-8")
    place = rng.randrange(len(text))
    endless = "{% for i in range(10**9) %}{{ 'a' * 10**9 }}{% endfor %}"
    added = rng.choice(
        (endless, "{{ 7 * 7 }}", "{{ x.y.z }}", "{% set a = 1 %}", "{#", "ü\n ", "{{", " ")
    )
    deed = rng.randrange(4)
    if deed == 0:
        changed: bytes | str = text[:place]
    elif deed == 1:
        changed = text[:place] + added + text[place:]
    elif deed == 2:
        changed = rng.choice(
            ("", endless, "{{ messages }}", "{{ ''.__class__.__mro__ }}", "x" * 10**6)
        )
    else:
        changed, _ = break_bytes(rng, text.encode())
    replaced(path, changed)
    return _of_checkpoint(
        base, scratch, "llava", folder, path, f"change {deed} at {place}: {added!r:.20}"
    )


def weights(rng: Random, base: Base, scratch: Path) -> Trial:
    """Safetensors: header and data."""
    family, folder, path = _checkpoint(
        rng, base, scratch, lambda path: path.suffix == ".safetensors"
    )
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    if rng.random() < 0.6:
        header, deed = change_json(rng, json.loads(data[8 : 8 + size]))
        body = to_json(header).encode()
        body += b" " * (-len(body) % 8)
        replaced(path, len(body).to_bytes(8, "little") + body + data[8 + size :])
    else:
        changed, deed = break_bytes(rng, data, size + 8)
        replaced(path, changed)
    return _of_checkpoint(base, scratch, family, folder, path, deed)


def plans(rng: Random, base: Base, scratch: Path) -> Trial:
    """Plans: damaged, or of other heads and channels."""
    family = rng.choice(("llava", "clip"))
    drops = family == "llava" and rng.random() < 0.4
    source = base.of(family) / ("dropping.json" if drops else "plan.json")
    path = scratch / "plan.json"
    text = source.read_text(encoding="utf-8")
    pick = rng.random()
    value = json.loads(text)
    if pick < 0.15:
        changed, deed = break_text(rng, text)
        replaced(path, changed)
    elif drops:
        place = rng.randrange(len(value["drops"]))  # one less would be another plan
        value["drops"][place], deed = break_json(rng, value["drops"][place])
        replaced(path, to_json(value))
    elif pick < 0.4:
        deed = _other_indices(rng, value)
        replaced(path, to_json(value))
    else:
        value, deed = change_json(rng, value)
        replaced(path, to_json(value))
    checkpoint = base.of(family) / "checkpoint"

    def product() -> Answers:
        from comp.plan import PruningPlan
        from comp.runs import RunDirectory
        from export.exporter import Origin, export_artifact
        from export.weights.cut_run import cut_run

        run = RunDirectory(scratch / "cut")
        plan = PruningPlan.load(path)
        cut_run(run, "tiny", checkpoint, plan)
        export_artifact(run.checkpoint, scratch / "onnx", Origin.of_plan(plan))
        return base.product_answers(family, scratch / "onnx")

    def right() -> Answers:
        """transformers' dense model, with the units that the plan removes multiplied by zero."""
        if drops:
            nothing_else()
        plan = json.loads(path.read_text(encoding="utf-8"))
        return base.right(family, checkpoint, lambda model: _mask(family, model, plan))

    before = base.once("llava", "onnx") if drops else None
    names = ("plan", str(scratch))
    return Trial(f"{family} {source.name}: {deed}", product, right, before, names)


def _other_indices(rng: Random, plan: dict[str, Any]) -> str:
    block = rng.choice(plan["blocks"])
    name = rng.choice(("kept_key_value_heads", "kept_channels"))
    kept = block[name]
    deed = rng.randrange(6)
    if deed == 0:
        kept.append(rng.choice((kept[-1], kept[0], 10**6, -1, 2**40)))
    elif deed == 1:
        kept.reverse()
    elif deed == 2:
        kept[rng.randrange(len(kept))] -= rng.choice((1, 1000))
    elif deed == 3:
        kept.clear()
    else:
        whole = range(block["num_key_value_heads" if "heads" in name else "intermediate_size"])
        kept[:] = sorted(rng.sample(whole, rng.randrange(1, len(whole) + 1)))
    return f"block {block['index']}, {name}: change {deed}"


def _mask(family: str, model: Any, plan: dict[str, Any]) -> None:
    import torch

    with torch.no_grad():
        for block in plan["blocks"]:
            attention, ffn = FAMILIES[family].layers(model, block["part"])[block["index"]]
            heads = torch.zeros(block["num_key_value_heads"])
            heads[torch.tensor(block["kept_key_value_heads"], dtype=torch.long)] = 1
            attention *= heads.repeat_interleave(attention.shape[1] // len(heads))
            channels = torch.zeros(ffn.shape[1])
            channels[torch.tensor(block["kept_channels"], dtype=torch.long)] = 1
            ffn *= channels
