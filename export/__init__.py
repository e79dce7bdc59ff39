"""Export a checkpoint and its plan, and verify what was exported (docs/how-to/python-api.md)."""

from typing import TYPE_CHECKING

from comp.utils.lazy import lazy

if TYPE_CHECKING:
    from export.api import onnx, verify
    from export.run_exporter import Exported

__all__ = ["Exported", "onnx", "verify"]

if not TYPE_CHECKING:  # type checkers see the imports above, and no other names
    __getattr__ = lazy(
        __name__,
        {"Exported": "export.run_exporter", "onnx": "export.api", "verify": "export.api"},
    )
