"""Check the manifest of engines against the model that they were built from."""

from pathlib import Path
from typing import TYPE_CHECKING

from comp.errors import CompExportError
from export.artifact.caches import segments_of
from export.artifact.encoder_manifest import EncoderManifest
from export.artifact.encoder_ports import encoder_inputs
from export.artifact.llava_manifest import IN_PLACE, LlavaManifest
from export.artifact.llava_ports import OPTIONAL, Ports, llava_inputs
from export.tensorrt.build import encoder_profiles as encoder
from export.tensorrt.names import DECODE, DECODER, EMBED, ENCODE, PREFILL, VISION

if TYPE_CHECKING:
    from export.tensorrt.manifest import EngineManifest, EngineProfile


def check_engines(manifest: "EngineManifest", path: Path, remedy: str) -> None:
    """Refuse a manifest whose engines do not match its model.

    Args:
        manifest: manifest of the engines.
        path: its file, for errors.
        remedy: appended to every error.

    Raises:
        CompExportError: names the engine and the difference.
    """
    declared = _declared(manifest, path, remedy)
    if set(declared) != set(manifest.engines):
        raise CompExportError(
            f"{path}: engines are {', '.join(manifest.engines) or 'none'}, the model needs "
            f"{', '.join(declared)}: {remedy}"
        )
    for name, (graph, ports) in declared.items():
        entry = manifest.engines[name]
        where = f"{path}: engines.{name}"
        if entry.graph != graph:
            raise CompExportError(f"{where}: graph is {entry.graph}, not {graph}: {remedy}")
        wanted = _profiles(name)
        names = tuple(profile.name for profile in entry.profiles)
        if names != wanted:
            raise CompExportError(
                f"{where}: profiles are {', '.join(names) or 'none'}, not {', '.join(wanted)}: {remedy}"
            )
        for profile in entry.profiles:
            _check_profile(profile, ports, f"{where}.profiles.{profile.name}", remedy)


def _declared(manifest: "EngineManifest", path: Path, remedy: str) -> dict[str, tuple[str, Ports]]:
    """The graph of each engine, and its inputs."""
    model = manifest.artifact
    if not isinstance(model, LlavaManifest):
        inputs = encoder_inputs(manifest.as_artifact(EncoderManifest))
        return {name: (f"{name}.onnx", ports) for name, ports in inputs.items()}
    segments = len(set(segments_of(model.decoder)))
    if len(manifest.cache_capacities) != segments:
        raise CompExportError(
            f"{path}: cache_capacities has {len(manifest.cache_capacities)} numbers, the model has "
            f"{segments} segments of caches: {remedy}"
        )
    sizes = {f"capacity_{number}": each for number, each in enumerate(manifest.cache_capacities)}
    inputs = llava_inputs(model)
    if IN_PLACE not in inputs:
        raise CompExportError(
            f"{path}: artifact is {model.flavour} in {model.precision}, of which no engines are: {remedy}"
        )
    caches: Ports = {
        name: tuple(sizes.get(dim, dim) if isinstance(dim, str) else dim for dim in dims)
        for name, dims in inputs[IN_PLACE].items()
    }
    return {
        VISION: ("vision_encoder.onnx", inputs["vision_encoder.onnx"]),
        EMBED: ("embed_tokens.onnx", inputs["embed_tokens.onnx"]),
        DECODER: (IN_PLACE, caches),
    }


def _profiles(engine: str) -> tuple[str, ...]:
    if engine in (DECODER, encoder.DECODER_MODEL):
        return PREFILL, DECODE
    return (PREFILL,) if engine in (VISION, EMBED) else (ENCODE,)


def _check_profile(profile: "EngineProfile", ports: Ports, where: str, remedy: str) -> None:
    """Check that fixed dimensions match the model in every shape, and that shapes ascend."""
    names = set(profile.shapes) - set(OPTIONAL)
    if names != set(ports):
        odd = ", ".join(sorted(names ^ set(ports)))
        raise CompExportError(f"{where}: its inputs are not those of the model ({odd}): {remedy}")
    for name, shapes in profile.shapes.items():
        dims = ports.get(name, ("",) * len(shapes[0]))
        for shape in shapes:
            fits = len(shape) == len(dims) and all(
                isinstance(dim, str) or dim == size for dim, size in zip(dims, shape, strict=True)
            )
            if not fits:
                raise CompExportError(
                    f"{where}: {name} is {list(shape)}, the model's is {list(dims)}: {remedy}"
                )
        if any(not low <= usual <= high for low, usual, high in zip(*shapes, strict=True)):
            raise CompExportError(f"{where}: shapes of {name} do not ascend: {remedy}")
