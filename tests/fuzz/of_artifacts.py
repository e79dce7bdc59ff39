"""Hostile artifacts and runs: the answer is unchanged or refused."""

import json
import os
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.base import Base, copied, replaced
from tests.fuzz.families import NEW_TOKENS, QUESTIONS, Answers
from tests.fuzz.making import Trial, nothing_else
from tests.fuzz.mutations import break_bytes, break_json, break_text, to_json


def _artifact(base: Base, scratch: Path) -> Path:
    return copied(base.of("llava") / "onnx", scratch / "onnx")


def files_of_artifact(rng: Random, base: Base, scratch: Path) -> Trial:
    """Change or remove a file of the manifest."""
    folder = _artifact(base, scratch)
    names = sorted(path.name for path in folder.iterdir() if path.name != "manifest.json")
    path = folder / rng.choice(names)
    data, deed = path.read_bytes(), rng.choice(("bytes", "gone", "other", "link", "pipe", "folder"))
    if deed == "bytes":
        changed, deed = break_bytes(rng, data)
        replaced(path, changed)
    elif deed == "other":
        replaced(path, (folder / rng.choice(names)).read_bytes())
    else:
        path.unlink()
        if deed == "link":
            path.symlink_to(rng.choice((Path("/dev/zero"), base.picture, path, scratch / "none")))
        elif deed == "pipe":
            os.mkfifo(path)
        elif deed == "folder":
            path.mkdir()
    return Trial(
        f"{path.name}: {deed}",
        lambda: base.product_answers("llava", folder),
        nothing_else,
        base.once("llava", "onnx"),
        (path.name,),
    )


def manifest(rng: Random, base: Base, scratch: Path) -> Trial:
    """Values of the wrong kind, missing and unknown fields, damaged text."""
    folder = _artifact(base, scratch)
    path = folder / "manifest.json"
    text = path.read_text(encoding="utf-8")
    if rng.random() < 0.25:
        changed, deed = break_text(rng, text)
        replaced(path, changed)
    else:
        value, deed = break_json(rng, json.loads(text))
        replaced(path, to_json(value))

    def right() -> Answers:
        """Any number is a valid image setting: return the pixels of transformers."""
        from PIL import Image
        from transformers import CLIPImageProcessorPil

        result = json.loads(path.read_text(encoding="utf-8"))
        if result | {"image_processor": None} != json.loads(text) | {"image_processor": None}:
            nothing_else()
        settings = _set_fields(result["image_processor"])
        with Image.open(base.picture) as picture:
            pixels = CLIPImageProcessorPil(**settings)(picture, return_tensors="np")["pixel_values"]
        return _bare(base, base.of("llava") / "onnx", pixels)

    names = ("manifest.json", str(folder), "chat template", "prompt_template", "not finite")
    return Trial(
        deed,
        lambda: base.product_answers("llava", folder),
        right,
        base.once("llava", "onnx"),
        names,
    )


def _set_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields that have a value, those inside too."""
    inside = {
        key: _set_fields(value) if isinstance(value, dict) else value
        for key, value in fields.items()
    }
    return {key: value for key, value in inside.items() if value is not None}


def graphs(rng: Random, base: Base, scratch: Path) -> Trial:
    """Graphs whose bytes are changed, and a manifest that agrees with them."""
    from export.artifact.manifest import describe_files

    folder = _artifact(base, scratch)
    path = rng.choice(sorted(folder.glob("*.onnx")))
    if rng.random() < 0.3:
        changed, deed = break_bytes(rng, path.read_bytes(), 2000)
    else:
        changed, deed = _other_graph(rng, path)
    replaced(path, changed)
    result = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    result["files"] = [entry.model_dump() for entry in describe_files(folder)]
    replaced(folder / "manifest.json", to_json(result))
    return Trial(
        f"{path.name}: {deed}",
        lambda: base.product_answers("llava", folder),
        lambda: _bare(base, folder, None),
        base.once("llava", "onnx"),
        (path.name, str(folder), "not finite"),
    )


def _bare(base: Base, folder: Path, pixels: Any) -> Answers:
    """Run graphs in a bare ONNX Runtime, with prompts, and default pixels of the sound graph."""
    from export.proof.llava_onnx import OnnxRunner
    from serve.engines.llava import Engine

    sound = Engine.load(base.of("llava") / "onnx", device="cpu", threads=1)
    runner = OnnxRunner(folder, threads=1)
    stops = sound.manifest.tokens.eos_token_ids
    seen = sound._pixels([base.picture]) if pixels is None else pixels
    answers = []
    for question in QUESTIONS:
        ids = sound._prompts.encode(question, 1).input_ids
        tokens = runner.generate(seen, ids[None], NEW_TOKENS)
        answers.append((ids.size, *(each for each in tokens if each not in stops)))
    return tuple(answers)


def _no_node(rng: Random, model: Any, node: Any) -> str:
    model.graph.node.remove(node)
    return f"{node.op_type} left out"


def _no_kind(rng: Random, model: Any, node: Any) -> str:
    what = f"{node.op_type} of no kind"
    node.op_type = rng.choice(("NoSuch", "", "Loop", "Identity"))
    return what


def _other_input(rng: Random, model: Any, node: Any) -> str:
    if node.input:
        names = ("", "none", model.graph.node[0].output[0])
        name = rng.choice(names)
        node.input[rng.randrange(len(node.input))] = name
    return f"another input of {node.op_type}"


def _other_name(rng: Random, model: Any, node: Any) -> str:
    ends = rng.choice((model.graph.input, model.graph.output))
    end = rng.choice(ends)
    what = f"{end.name} renamed"
    end.name = rng.choice(("x", "", ends[0].name))
    return what


def _other_shape(rng: Random, model: Any, node: Any) -> str:
    end = rng.choice(model.graph.input)
    shape = end.type.tensor_type.shape
    if shape.dim:
        rng.choice(shape.dim).dim_value = rng.choice((0, -1, 3, 2**31, 2**62))
    return f"another shape of {end.name}"


def _other_opset(rng: Random, model: Any, node: Any) -> str:
    model.opset_import[0].version = rng.choice((0, -1, 1, 9999, 2**40))
    return "another opset"


def _other_place_of_weights(rng: Random, model: Any, node: Any) -> str:
    if not model.graph.initializer:
        return _other_type(rng, model, node)
    tensor = rng.choice(model.graph.initializer)
    for entry in tensor.external_data:
        if entry.key == rng.choice(("location", "offset", "length")):
            entry.value = rng.choice(("../x", "/dev/zero", "-1", str(2**63), "", "manifest.json"))
    return f"other data of {tensor.name}"


def _other_shape_of_weights(rng: Random, model: Any, node: Any) -> str:
    if not model.graph.initializer:
        return _other_type(rng, model, node)
    tensor = rng.choice(model.graph.initializer)
    if tensor.dims:
        size = rng.choice((0, -1, 2**40))
        tensor.dims[rng.randrange(len(tensor.dims))] = size
    return f"another shape of {tensor.name}"


def _other_type(rng: Random, model: Any, node: Any) -> str:
    end = rng.choice(model.graph.input)
    end.type.tensor_type.elem_type = rng.choice((0, 7, 8, 10, 99))
    return f"another type of {end.name}"


# Each changes a graph in place and describes the change.
OTHER_GRAPHS = (
    _no_node,
    _no_kind,
    _other_input,
    _other_name,
    _other_shape,
    _other_opset,
    _other_place_of_weights,
    _other_shape_of_weights,
    _other_type,
)


def _other_graph(rng: Random, path: Path) -> tuple[bytes, str]:
    """Structure changed: a graph that parses."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    change = OTHER_GRAPHS[rng.randrange(len(OTHER_GRAPHS))]
    what = change(rng, model, rng.choice(model.graph.node))
    return model.SerializeToString(), what


def run_record(rng: Random, base: Base, scratch: Path) -> Trial:
    """``run.json``: damaged."""
    from serve.artifacts import DEFAULT_VARIANT, artifacts_of

    folder = copied(base.of("llava"), scratch / "run")
    path = folder / "run.json"
    text = path.read_text(encoding="utf-8")
    if rng.random() < 0.5:
        changed, deed = break_text(rng, text)
        replaced(path, changed)
    else:
        value, deed = break_json(rng, json.loads(text))
        replaced(path, to_json(value))

    def product() -> Answers:
        _, directories = artifacts_of(folder, DEFAULT_VARIANT)
        return base.product_answers("llava", directories["compressed"])

    return Trial(deed, product, nothing_else, base.once("llava", "onnx"), ("run.json", str(folder)))
