"""Run exported artifacts with numpy, ONNX Runtime, tokenizers and Pillow; without torch."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serve.engines.llava import Engine
    from serve.generation.options import GenerationOptions
    from serve.generation.results import Event, Finished, Generation, Prefilled, TokenText

__all__ = [
    "Engine",
    "Event",
    "Finished",
    "Generation",
    "GenerationOptions",
    "Prefilled",
    "TokenText",
]

_HOME = {
    "Engine": "serve.engines.llava",
    "GenerationOptions": "serve.generation.options",
    "Event": "serve.generation.results",
    "Finished": "serve.generation.results",
    "Generation": "serve.generation.results",
    "Prefilled": "serve.generation.results",
    "TokenText": "serve.generation.results",
}


def __getattr__(name: str) -> Any:
    """Load ONNX Runtime only when the engine is used: the commands' help must not wait for it."""
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module 'serve' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
