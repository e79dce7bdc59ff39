"""Open an artifact: choose its runtime, and refuse what cannot run."""

from pathlib import Path
from typing import Literal, TypeVar

from comp.errors import CompExportError
from export.artifact.load import load_artifact_of
from export.artifact.manifest import Artifact
from serve.backends.base import BackendName, ProviderChoice, Runtime

A = TypeVar("A", bound=Artifact)


def open_artifact(
    directory: Path,
    kind: type[A],
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: int | None = None,
    check_hashes: bool = True,
    provider: ProviderChoice = "auto",
    backend: BackendName = "onnxruntime",
) -> tuple[A, Runtime]:
    """Open an artifact of a class, and the runtime for its graphs.

    Raises:
        CompExportError: the artifact is missing, damaged or of another family; the backend or provider
            is not available or does not support this flavour or precision.
    """
    if backend == "tensorrt":
        raise CompExportError(
            f"{directory} holds ONNX graphs, backend tensorrt runs engines: build them with "
            "`comp-export tensorrt`, or use --backend onnxruntime"
        )
    if backend in ("openvino", "openvino-bfloat16"):
        from serve.backends.openvino import OpenVino

        artifact = load_artifact_of(directory, kind, check_hashes)
        bfloat16 = backend == "openvino-bfloat16"
        return artifact, OpenVino.of(
            artifact.manifest, directory, device, provider, threads, bfloat16
        )
    # Imported here because OpenVINO needs no ONNX Runtime.
    from serve.backends.onnxruntime.providers import choose_provider
    from serve.backends.onnxruntime.runtime import OnnxRuntime

    chosen = choose_provider(provider, device)
    artifact = load_artifact_of(directory, kind, check_hashes)
    return artifact, OnnxRuntime.of(artifact.manifest, directory, chosen, threads)


def check_native(directory: Path, device: str, provider: str, backend: BackendName) -> None:
    """Refuse options that do not apply to engines.

    Raises:
        CompExportError: names the option.
    """
    if backend != "tensorrt":
        raise CompExportError(
            f"{directory} holds TensorRT engines, backend {backend} runs ONNX graphs: leave it out, "
            "or name the directory of the graphs"
        )
    if device == "cpu" or provider != "auto":
        option = "--device cpu" if device == "cpu" else f"--provider {provider}"
        raise CompExportError(
            f"{directory} holds TensorRT engines, {option} is for ONNX Runtime: leave it out, or use "
            "--backend onnxruntime"
        )
