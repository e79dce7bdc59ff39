"""Opening an artifact: ONNX Runtime's provider is chosen, and what cannot run refused."""

from pathlib import Path
from typing import Literal, TypeVar

from comp.errors import CompExportError
from export.manifest import Artifact, Manifest
from export.reading import load_artifact_of
from serve.backends.base import ProviderChoice
from serve.backends.providers import Provider, SessionMaker, choose_provider
from serve.caches import cache_directory

A = TypeVar("A", bound=Artifact)


def open_artifact(
    directory: Path,
    kind: type[A],
    device: Literal["auto", "cpu", "cuda"] = "auto",
    check_hashes: bool = True,
    provider: ProviderChoice = "auto",
) -> tuple[A, Provider]:
    """An artifact of a class, and the provider to run it with.

    Raises:
        CompExportError: a missing or damaged artifact, one of another family; a provider that is not
            there or does not run this flavour or precision.
    """
    chosen = choose_provider(provider, device)
    artifact = load_artifact_of(directory, kind, check_hashes)
    manifest = artifact.manifest
    if "tensorrt" in chosen and manifest.flavour != "standard":
        raise CompExportError(
            f"provider {chosen}: {directory} is of the {manifest.flavour} flavour, TensorRT takes "
            "the standard one: use --flavour standard (`comp-export onnx --flavour standard`)"
        )
    if chosen == "cpu" and manifest.precision == "bfloat16":
        raise CompExportError(
            f"{directory} is bfloat16, which ONNX Runtime does not compute on a CPU: use "
            "--precision float16 or float32"
        )
    return artifact, chosen


def check_native(directory: Path, device: str, provider: str) -> None:
    """Refuse options that engines do not take.

    Raises:
        CompExportError: names the option.
    """
    if device == "cpu" or provider != "auto":
        option = "--device cpu" if device == "cpu" else f"--provider {provider}"
        raise CompExportError(
            f"{directory} holds TensorRT engines, {option} is for ONNX Runtime: leave it out, or use "
            "--backend onnxruntime"
        )


def session_maker(manifest: Manifest, provider: Provider, threads: int | None) -> SessionMaker:
    """Makes sessions of an artifact's graphs; TensorRT's providers keep what they compile."""
    cache = cache_directory(provider, manifest) if "tensorrt" in provider else Path()
    return SessionMaker(provider, manifest, cache, threads)
