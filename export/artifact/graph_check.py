"""An artifact's graphs held against its manifest: what one says of them, the other must be.

Whoever runs a graph sizes its caches and its pictures by the manifest.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

from comp.errors import CompExportError
from export.artifact.encoder_manifest import EncoderManifest
from export.artifact.encoder_ports import encoder_inputs, encoder_outputs
from export.artifact.llava_manifest import LlavaManifest
from export.artifact.llava_ports import OPTIONAL, Ports, llava_inputs, llava_outputs
from export.artifact.manifest import MANIFEST_NAME, REMEDY, Artifact, Manifest, computed_in
from export.artifact.onnx_file import OnnxFile, Port, read_onnx_file

FLOAT, INT64 = 1, 7
ELEMENTS = {"float32": FLOAT, "float16": 10, "bfloat16": 16}  # of ONNX's TensorProto.DataType
CACHES = ("past_key_values.", "present.", "cross.")
POSITIONS = {  # tables with a row for each position, and the part of a manifest that counts them
    "rope.cos": "decoder",
    "text_decoder.bert.embeddings.position_embeddings.weight": "decoder",
    "text_model.embeddings.position_embedding.weight": "text",
    "text_encoder.embeddings.position_embeddings.weight": "text",
}


def check_graphs(artifact: Artifact) -> None:
    """Refuse graphs that are not what the manifest says, or whose weights are in files that it does not list.

    Raises:
        CompExportError: names the file, and what differs.
    """
    manifest = artifact.manifest
    listed = {entry.name for entry in manifest.files}
    inputs, outputs = _declared(manifest)
    for name in sorted(name for name in listed if name.endswith(".onnx")):
        path = artifact.path / name
        found = read_onnx_file(path, REMEDY)
        for location in sorted(found.external - listed):
            raise CompExportError(
                f"{path} has weights in {location!r}, which {MANIFEST_NAME} does not list: {REMEDY}"
            )
        if name not in inputs:
            raise CompExportError(
                f"{path} is no graph of a {manifest.family} of task {manifest.task!r}: {REMEDY}"
            )
        _compare(path, "input", inputs[name], found.inputs, manifest, OPTIONAL)
        _compare(path, "output", outputs[name], found.outputs, manifest)
        _check_positions(path, found, manifest)
    _check_pictures(artifact.path / MANIFEST_NAME, manifest)


def _declared(manifest: Manifest) -> tuple[dict[str, Ports], dict[str, Ports]]:
    """Inputs and outputs of each graph by its file's name."""
    if isinstance(manifest, LlavaManifest):
        return llava_inputs(manifest), llava_outputs(manifest)
    assert isinstance(manifest, EncoderManifest)
    inputs = {f"{name}.onnx": ports for name, ports in encoder_inputs(manifest).items()}
    outputs = {f"{name}.onnx": ports for name, ports in encoder_outputs(manifest).items()}
    return inputs, outputs


def _compare(
    path: Path,
    what: str,
    declared: Ports,
    found: Mapping[str, Port],
    manifest: Manifest,
    optional: Collection[str] = (),
) -> None:
    """Inputs, or outputs; those of kept places are as many as there are places, and not looked at."""
    for name in declared:
        if name not in found:
            raise CompExportError(
                f"{path} has no {what} {name}, which {MANIFEST_NAME} speaks of: {REMEDY}"
            )
    for name, port in found.items():
        if name in optional:
            continue
        if name not in declared:
            if isinstance(manifest, EncoderManifest) and name.startswith("kept."):
                continue
            raise CompExportError(
                f"{path} has an {what} {name}, of which {MANIFEST_NAME} does not speak: {REMEDY}"
            )
        said = declared[name]
        if port.dims is None or len(port.dims) != len(said) or _differ(port.dims, said):
            raise CompExportError(
                f"{path}: {what} {name} is {_shown(port.dims)}, and {MANIFEST_NAME} says "
                f"{_shown(said)}: {REMEDY}"
            )
        if port.dtype != _element(name, manifest):
            raise CompExportError(
                f"{path}: {what} {name} has elements of type {port.dtype}, which is not that of "
                f"precision {manifest.precision}: {REMEDY}"
            )


def _differ(found: Collection[int | str], said: Collection[int | str]) -> bool:
    pairs = zip(found, said, strict=True)
    return any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs)


def _element(name: str, manifest: Manifest) -> int:
    """The type of an input's or output's elements."""
    if name.startswith(CACHES):
        return ELEMENTS[computed_in(manifest.precision)]
    is_place = name.endswith(("_ids", "_positions")) or name.startswith("kept")
    return INT64 if is_place else FLOAT


def _check_pictures(path: Path, manifest: Manifest) -> None:
    """Whatever a picture is, the image processor must make of it what the graphs take."""
    assert isinstance(manifest, (LlavaManifest, EncoderManifest))
    made, side = manifest.image_processor.output, manifest.vision.image_size
    if made != (side, side):
        of = "sizes that differ" if made is None else f"{made[0]}x{made[1]} pixels"
        raise CompExportError(
            f"{path}: image_processor makes pictures of {of}, vision.image_size is {side}: {REMEDY}"
        )


def _check_positions(path: Path, found: OnnxFile, manifest: Manifest) -> None:
    """A position that a table has no row for would be read from elsewhere."""
    for table, part in POSITIONS.items():
        if table not in found.weights:
            continue
        said = getattr(manifest, part).max_position_embeddings
        rows = found.weights[table][0]
        if said > rows:
            raise CompExportError(
                f"{path} has {rows} positions, and {MANIFEST_NAME} says {said}: {REMEDY}"
            )


def _shown(dims: Collection[int | str] | None) -> str:
    return "of any shape" if dims is None else f"[{', '.join(str(dim) or '?' for dim in dims)}]"
