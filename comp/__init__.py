"""CoMP pruning of vision-language models: ``comp.prune`` (docs/how-to/python-api.md).

Importing this package imports neither torch nor transformers. Slim models are registered with
``transformers`` once its auto classes are loaded.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from wrapt import when_imported

from comp.registry.families import FAMILIES
from comp.utils.lazy import lazy

if TYPE_CHECKING:
    from comp.data.example import Example, PairExample
    from comp.errors import CompExportError
    from comp.pipeline.api import prune
    from comp.pipeline.options import PruneOptions
    from comp.plan import PruningPlan
    from comp.registry.families import register_family
    from comp.registry.family import Family, Teaching
    from comp.registry.importances import LayerStatistics, register_importance
    from comp.registry.methods import register_method
    from comp.runs import RunDirectory, open_run
    from comp.search.job import Outcome, PruningJob
    from comp.utils.progress import Callback

__all__ = [
    "Callback",
    "CompExportError",
    "Example",
    "Family",
    "LayerStatistics",
    "Outcome",
    "PairExample",
    "PruneOptions",
    "PruningJob",
    "PruningPlan",
    "RunDirectory",
    "Teaching",
    "open_run",
    "prune",
    "register_family",
    "register_importance",
    "register_method",
]

if not TYPE_CHECKING:  # type checkers see the imports above, and no other names
    __getattr__ = lazy(
        __name__,
        {
            "Callback": "comp.utils.progress",
            "CompExportError": "comp.errors",
            "Example": "comp.data.example",
            "Family": "comp.registry.family",
            "LayerStatistics": "comp.registry.importances",
            "Outcome": "comp.search.job",
            "PairExample": "comp.data.example",
            "PruneOptions": "comp.pipeline.options",
            "PruningJob": "comp.search.job",
            "PruningPlan": "comp.plan",
            "RunDirectory": "comp.runs",
            "Teaching": "comp.registry.family",
            "open_run": "comp.runs",
            "prune": "comp.pipeline.api",
            "register_family": "comp.registry.families",
            "register_importance": "comp.registry.importances",
            "register_method": "comp.registry.methods",
        },
    )

_AUTO = "transformers.models.auto.modeling_auto"
# A processor of a slim checkpoint asks for its configuration, maybe before any model is wanted.
_PROCESSORS = "transformers.models.auto.processing_auto"
_SLIM = {dense: ours for family in FAMILIES for dense, ours in family.slim.items()}
# What slim models are made of: some of it loads the auto classes while it is itself being loaded.
_LLAMA = "transformers.models.llama.modeling_llama"
# Ours, likewise.
_FORWARDS = tuple(
    f"comp.families.{name}"
    for name in ("llava.decoder", "llava.forward", "llava.slim_forward", "clip.forward")
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
