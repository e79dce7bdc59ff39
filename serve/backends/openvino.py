"""OpenVINO as what runs an artifact's graphs, on the CPU."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from comp.errors import CompExportError
from export.manifest import Manifest, Precision
from export.openvino_graph import OpenVinoGraph, openvino_version
from export.openvino_pages import PageBuffers, PagedDecoder
from serve.backends.base import BackendName


@dataclass(frozen=True)
class OpenVino:
    """Loads graphs into OpenVINO (see ``Runtime``); ``precision`` and ``threads`` as of ``OpenVinoGraph``."""

    precision: Precision
    threads: int | None
    label: str
    name: BackendName = "openvino"
    device: Literal["cpu", "cuda"] = "cpu"

    @classmethod
    def of(
        cls, manifest: Manifest, directory: Path, device: str, provider: str, threads: int | None
    ) -> "OpenVino":
        """For an artifact.

        Raises:
            CompExportError: OpenVINO is not installed, or does not run this flavour; an option that is
                ONNX Runtime's.
        """
        if device == "cuda" or provider != "auto":
            option = f"--provider {provider}" if provider != "auto" else f"--device {device}"
            raise CompExportError(
                f"backend openvino runs on the CPU, {option} is for ONNX Runtime: leave one out"
            )
        if manifest.flavour != "standard":
            raise CompExportError(
                f"backend openvino: {directory} is of the {manifest.flavour} flavour, whose fused "
                "operators are ONNX Runtime's own; OpenVINO takes the standard one: use --flavour "
                "standard (`comp-export onnx --flavour standard`)"
            )
        return cls(manifest.precision, threads, f"openvino {openvino_version()}")

    @property
    def buffers(self) -> PageBuffers:
        """See ``Runtime``."""
        return PageBuffers(self.precision)

    def graph(self, path: Path) -> OpenVinoGraph:
        """See ``Runtime``."""
        return OpenVinoGraph(path, self.precision, self.threads)

    def decoder(self, path: Path) -> tuple[PagedDecoder, PagedDecoder]:
        """See ``Runtime``: caches are bound once."""
        decoder = PagedDecoder(path, self.precision, self.threads)
        return decoder, decoder

    def table(self, path: Path) -> OpenVinoGraph:
        """See ``Runtime``."""
        return OpenVinoGraph(path, self.precision, threads=1)
