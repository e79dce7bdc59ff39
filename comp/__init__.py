"""CoMP pruning of vision-language models. Importing this package imports neither torch nor transformers.

Slim models are registered with ``transformers`` once its auto classes are loaded.
"""

import sys
from importlib import import_module
from types import ModuleType

from wrapt import when_imported

from comp.registry.families import FAMILIES

_AUTO = "transformers.models.auto.modeling_auto"
# A processor of a slim checkpoint asks for its configuration, maybe before any model is wanted.
_PROCESSORS = "transformers.models.auto.processing_auto"
_SLIM = {dense: ours for family in FAMILIES for dense, ours in family.slim.items()}
# What slim models are made of: some of it loads the auto classes while it is itself being loaded.
_LLAMA = "transformers.models.llama.modeling_llama"
# Ours, likewise.
_FORWARDS = tuple(
    f"comp.families.{name}" for name in ("llava.decoder", "llava.forward", "clip.forward")
)
_AWAITED = (_AUTO, "transformers.modeling_layers", _LLAMA, *_SLIM, *_FORWARDS)
_whole: set[str] = set()


def _after(module: ModuleType) -> None:
    """Register slim models when nothing they are made of is half loaded."""
    _whole.add(module.__name__)
    if _AUTO not in _whole or any(n in sys.modules and n not in _whole for n in _AWAITED):
        return
    for slim in _SLIM.values():
        # The module registers its classes when it is whole; one that is being imported will do so.
        if slim not in sys.modules:
            import_module(slim)


for _name in _AWAITED:
    when_imported(_name)(_after)
when_imported(_PROCESSORS)(lambda module: import_module(_AUTO))
