"""Run exported artifacts with numpy, ONNX Runtime, tokenizers and Pillow; without torch.

The functions of a user are in docs/how-to/python-api.md.
"""

from typing import TYPE_CHECKING

from comp.utils.lazy import lazy

if TYPE_CHECKING:
    from serve.api import evaluate, load
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
    "evaluate",
    "load",
]

if not TYPE_CHECKING:  # type checkers see the imports above, and no other names
    # Loads ONNX Runtime only when an engine is used: the help of commands must not wait for it.
    __getattr__ = lazy(
        __name__,
        {
            "Engine": "serve.engines.llava",
            "Event": "serve.generation.results",
            "Finished": "serve.generation.results",
            "Generation": "serve.generation.results",
            "GenerationOptions": "serve.generation.options",
            "Prefilled": "serve.generation.results",
            "TokenText": "serve.generation.results",
            "evaluate": "serve.api",
            "load": "serve.api",
        },
    )
