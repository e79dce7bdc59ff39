"""OpenVINO as the runtime of an artifact's graphs, on the CPU."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from comp.errors import CompExportError
from export.artifact.manifest import Manifest, Precision, computed_in
from export.openvino.embedding_table import OpenVinoTable
from export.openvino.graph import OpenVinoGraph, openvino_version
from export.openvino.paged_decoder import PageBuffers, PagedDecoder
from serve.backends.base import BackendName


@dataclass(frozen=True)
class OpenVino:
    """Loads graphs into OpenVINO (see ``Runtime``); the first three attributes as in ``OpenVinoGraph``."""

    precision: Precision
    threads: int | None
    bfloat16: bool
    label: str
    device: Literal["cpu", "cuda"] = "cpu"

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        directory: Path,
        device: str,
        provider: str,
        threads: int | None,
        bfloat16: bool,
    ) -> "OpenVino":
        """Create it for an artifact; ``bfloat16``: compute in it with integer weights.

        Raises:
            CompExportError: OpenVINO is not installed or does not support this flavour, or an option is for
                ONNX Runtime.
        """
        if device == "cuda" or provider != "auto":
            option = f"--provider {provider}" if provider != "auto" else f"--device {device}"
            raise CompExportError(
                f"OpenVINO runs on the CPU, {option} is for ONNX Runtime: leave one out"
            )
        if manifest.flavour != "standard":
            raise CompExportError(
                f"OpenVINO: {directory} is of the {manifest.flavour} flavour, whose fused "
                "operators are ONNX Runtime's own; OpenVINO takes the standard one: use --flavour "
                "standard (`comp-export onnx --flavour standard`)"
            )
        if bfloat16 and computed_in(manifest.precision) == manifest.precision:
            raise CompExportError(
                f"backend openvino-bfloat16 computes with weights in 8 or 4 bits, {directory} is "
                f"{manifest.precision}: export with --precision bfloat16 and use --backend openvino"
            )
        return cls(manifest.precision, threads, bfloat16, f"openvino {openvino_version()}")

    @property
    def name(self) -> BackendName:
        """See ``Runtime``."""
        return "openvino-bfloat16" if self.bfloat16 else "openvino"

    @property
    def buffers(self) -> PageBuffers:
        """See ``Runtime``."""
        return PageBuffers(self.precision, self.bfloat16)

    def graph(self, path: Path) -> OpenVinoGraph:
        """See ``Runtime``."""
        return OpenVinoGraph(path, self.precision, self.threads, self.bfloat16)

    def decoder(self, path: Path) -> tuple[PagedDecoder, PagedDecoder]:
        """See ``Runtime``: caches are bound once."""
        decoder = PagedDecoder(path, self.precision, self.threads, self.bfloat16)
        return decoder, decoder

    def table(self, path: Path) -> OpenVinoTable:
        """See ``Runtime``."""
        return OpenVinoTable(path)
