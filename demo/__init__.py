"""The demo page: the original and the compressed model side by side (docs/how-to/python-api.md)."""

from typing import TYPE_CHECKING

from comp.utils.lazy import lazy

if TYPE_CHECKING:
    from demo.server import serve_page

__all__ = ["serve_page"]

if not TYPE_CHECKING:  # type checkers see the imports above, and no other names
    __getattr__ = lazy(__name__, {"serve_page": "demo.server"})
