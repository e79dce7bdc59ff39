"""What an adapter must define, and what its modules must support."""

import pytest
import torch

from comp.adapter import FamilyAdapter
from comp.families.llava.adapter import LlavaAdapter
from comp.families.llava.decoder import _to_device
from comp.tokens.drop_rules import DropRule
from comp.tokens.state import TokenState
from tests.fresh import run_code

MODULES = ("comp.families.clip.slim", "comp.families.blip.slim", "comp.families.blip.nlvr")
TWICE = (
    "import importlib, sys; [importlib.reload(importlib.import_module(m)) for m in sys.argv[1:]]"
)


@pytest.mark.parametrize("method", sorted(FamilyAdapter.__abstractmethods__))
def test_an_adapter_missing_a_method_cannot_be_created(method):
    inherited = getattr(FamilyAdapter, method)
    incomplete = type("Incomplete", (LlavaAdapter,), {method: inherited})
    with pytest.raises(TypeError, match=rf"abstract.*{method}"):
        incomplete(None, None)


def test_a_drop_rule_without_keep_cannot_be_created():
    class Forgetful(DropRule):
        pass

    with pytest.raises(TypeError, match=r"abstract.*keep"):
        Forgetful()


def test_slim_classes_can_be_imported_twice():
    done = run_code(TWICE, *MODULES)
    assert done.status == 0, done.errors[-3000:]


def test_tokens_move_to_another_device_with_their_sizes():
    values = {
        name: torch.zeros(1, 2) for name in ("position", "kind", "alive", "index", "query", "size")
    }
    tokens = TokenState(torch.zeros(1, 2, 4), **values)
    moved = _to_device(tokens, torch.nn.Linear(4, 4, device="meta"))
    assert {name: value.device.type for name, value in vars(moved).items()} == dict.fromkeys(
        vars(tokens), "meta"
    )
    assert moved.size.shape == (1, 2)
