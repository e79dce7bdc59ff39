"""Check an artifact's graphs against its manifest.

A runtime sizes caches and images by the manifest, so the two must agree.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

from comp.errors import CompExportError
from export.artifact.caches import CROSS, PAST, PRESENT
from export.artifact.encoder_manifest import EncoderManifest
from export.artifact.encoder_ports import encoder_inputs, encoder_outputs
from export.artifact.llava_manifest import LlavaManifest
from export.artifact.llava_ports import OPTIONAL, Ports, llava_inputs, llava_outputs
from export.artifact.manifest import MANIFEST_NAME, REMEDY, Artifact, Manifest, computed_in
from export.artifact.onnx_file import OnnxFile, Port, read_onnx_file

FLOAT, INT64 = 1, 7
ELEMENTS = {"float32": FLOAT, "float16": 10, "bfloat16": 16}  # of ONNX's TensorProto.DataType
CACHES = (PAST, PRESENT, CROSS)
POSITIONS = {  # position tables, and the manifest entry with their number of rows
    "rope.cos": "decoder",
    "text_decoder.bert.embeddings.position_embeddings.weight": "decoder",
    "text_model.embeddings.position_embedding.weight": "text",
    "text_encoder.embeddings.position_embeddings.weight": "text",
}


def check_graphs(artifact: Artifact) -> None:
    """Refuse graphs that differ from the manifest, or that have weights in files it does not list.

    Raises:
        CompExportError: names the file and the difference.
    """
    manifest = artifact.manifest
    listed = {entry.name for entry in manifest.files}
    inputs, outputs = _declared(manifest)
    for name in sorted(name for name in listed if name.endswith(".onnx")):
        path = artifact.path / name
        graph = read_onnx_file(path, REMEDY)
        for location in sorted(graph.external - listed):
            raise CompExportError(
                f"{path} has weights in {location!r}, which {MANIFEST_NAME} does not list: {REMEDY}"
            )
        if name not in inputs:
            raise CompExportError(
                f"{path} is no graph of a {manifest.family} of task {manifest.task!r}: {REMEDY}"
            )
        _compare(path, "input", inputs[name], graph.inputs, manifest, OPTIONAL)
        _compare(path, "output", outputs[name], graph.outputs, manifest)
        _check_positions(path, graph, manifest)
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
    kind: str,
    declared: Ports,
    actual: Mapping[str, Port],
    manifest: Manifest,
    optional: Collection[str] = (),
) -> None:
    """Compare inputs or outputs; the lengths of kept positions are free and not compared."""
    for name in declared:
        if name not in actual:
            raise CompExportError(
                f"{path} has no {kind} {name}, which {MANIFEST_NAME} speaks of: {REMEDY}"
            )
    for name, port in actual.items():
        if name in optional:
            continue
        if name not in declared:
            if isinstance(manifest, EncoderManifest) and name.startswith("kept."):
                continue
            raise CompExportError(
                f"{path} has an {kind} {name}, of which {MANIFEST_NAME} does not speak: {REMEDY}"
            )
        expected = declared[name]
        if port.dims is None or len(port.dims) != len(expected) or _differ(port.dims, expected):
            raise CompExportError(
                f"{path}: {kind} {name} is {_shown(port.dims)}, and {MANIFEST_NAME} says "
                f"{_shown(expected)}: {REMEDY}"
            )
        if port.dtype != _element(name, manifest):
            raise CompExportError(
                f"{path}: {kind} {name} has elements of type {port.dtype}, which is not that of "
                f"precision {manifest.precision}: {REMEDY}"
            )


def _differ(actual: Collection[int | str], expected: Collection[int | str]) -> bool:
    pairs = zip(actual, expected, strict=True)
    return any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs)


def _element(name: str, manifest: Manifest) -> int:
    """The type of an input's or output's elements."""
    if name.startswith(CACHES):
        return ELEMENTS[computed_in(manifest.precision)]
    is_place = name.endswith(("_ids", "_positions")) or name.startswith("kept")
    return INT64 if is_place else FLOAT


def _check_pictures(path: Path, manifest: Manifest) -> None:
    """Check that the image processor gives images of the size that the graphs take."""
    assert isinstance(manifest, (LlavaManifest, EncoderManifest))
    size, side = manifest.image_processor.output, manifest.vision.image_size
    if size != (side, side):
        of = "sizes that differ" if size is None else f"{size[0]}x{size[1]} pixels"
        raise CompExportError(
            f"{path}: image_processor makes pictures of {of}, vision.image_size is {side}: {REMEDY}"
        )


def _check_positions(path: Path, graph: OnnxFile, manifest: Manifest) -> None:
    """Check that position tables have a row for every position that the manifest allows."""
    for table, part in POSITIONS.items():
        if table not in graph.weights:
            continue
        positions = getattr(manifest, part).max_position_embeddings
        rows = graph.weights[table][0]
        if positions > rows:
            raise CompExportError(
                f"{path} has {rows} positions, and {MANIFEST_NAME} says {positions}: {REMEDY}"
            )


def _shown(dims: Collection[int | str] | None) -> str:
    return "of any shape" if dims is None else f"[{', '.join(str(dim) or '?' for dim in dims)}]"
