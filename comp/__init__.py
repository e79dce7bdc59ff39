"""CoMP pruning of vision-language models. Importing this package imports neither torch nor transformers.

Once ``transformers`` has loaded its auto classes, slim models are registered with them.
"""

import sys
from functools import partial
from importlib import import_module

from wrapt import when_imported

_AUTO = "transformers.models.auto.modeling_auto"
_SLIM = {
    "transformers.models.llava.modeling_llava": "comp.families.slim_llava",
    "transformers.models.clip.modeling_clip": "comp.families.slim_clip",
}


def _register(slim: str) -> None:
    # The module registers its classes when it is whole; one that is being imported will do so.
    if slim not in sys.modules:
        import_module(slim)


@when_imported(_AUTO)
def _after_auto_classes(_: object) -> None:
    # When a family's own module is what loads the auto classes, it is not whole yet: wait for it.
    for family, slim in _SLIM.items():
        if family not in sys.modules:
            _register(slim)


def _after_family(slim: str, _: object) -> None:
    if _AUTO in sys.modules:
        _register(slim)


for _family, _slim in _SLIM.items():
    when_imported(_family)(partial(_after_family, _slim))
