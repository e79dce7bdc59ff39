"""CoMP pruning of vision-language models. Importing this package imports neither torch nor transformers.

Once ``transformers`` has loaded its auto classes, slim models are registered with them.
"""

import sys
from importlib import import_module

from wrapt import when_imported

_AUTO = "transformers.models.auto.modeling_auto"
_LLAVA = "transformers.models.llava.modeling_llava"
_SLIM = "comp.families.slim_llava"


def _register() -> None:
    # The module registers its classes when it is whole; one that is being imported will do so.
    if _SLIM not in sys.modules:
        import_module(_SLIM)


@when_imported(_AUTO)
def _after_auto_classes(_: object) -> None:
    # When LLaVA's own module is what loads the auto classes, it is not whole yet: wait for it.
    if _LLAVA not in sys.modules:
        _register()


@when_imported(_LLAVA)
def _after_llava(_: object) -> None:
    if _AUTO in sys.modules:
        _register()
