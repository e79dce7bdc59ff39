"""Suggestions for typing errors; none for words that are no errors of a name."""

import pytest

from comp.checkpoints.locate import ALIASES, EMBEDDED
from comp.cli import VERBS
from comp.registry.methods import METHODS
from comp.registry.modes import SHORT_MODES
from comp.utils.similar import errors_between, suggestion, unknown_name

MODELS = (*EMBEDDED, *ALIASES)
METHOD_NAMES = [method.name for method in METHODS]
MODES = list(SHORT_MODES.values())


@pytest.mark.parametrize(
    ("word", "names", "meant"),
    [
        ("tiny-lava", MODELS, "tiny-llava"),
        ("tinyllava", MODELS, "tiny-llava"),
        ("Tiny_LLaVA", MODELS, "tiny-llava"),
        ("prnue", VERBS, "prune"),
        ("evla", VERBS, "eval"),
        ("rnu", VERBS, "run"),
        ("insepct", VERBS, "inspect"),
        ("quikstrat", VERBS, "quickstart"),
        ("quick", VERBS, "quickstart"),
        ("vission_tokens", MODES, "vision_tokens"),
        ("langage-tokens", MODES, "language_tokens"),
        ("cmop", METHOD_NAMES, "comp"),
        ("compp", METHOD_NAMES, "comp"),
        ("fastw", METHOD_NAMES, "fastv"),
        ("stage", ["stages", "steps_per_stage", "train_stages"], "stages"),
    ],
)
def test_typing_errors_are_recognised(word, names, meant):
    assert suggestion(word, names) == f"did you mean {meant!r}?"


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("train", VERBS),
        ("start", VERBS),
        ("version", VERBS),
        ("xyz", VERBS),
        ("r", VERBS),
        ("", VERBS),
        ("resnet", MODELS),
        ("random", METHOD_NAMES),
        ("qq", [*SHORT_MODES]),
        ("prune", []),
    ],
)
def test_nonsense_and_other_words_have_no_suggestion(word, names):
    assert suggestion(word, names) == ""


@pytest.mark.parametrize(
    ("word", "name", "errors"),
    [
        ("comp", "comp", 0),
        ("cmop", "comp", 1),
        ("cop", "comp", 1),
        ("", "run", 3),
        ("abc", "ca", 3),
    ],
)
def test_errors_are_counted(word, name, errors):
    assert errors_between(word, name) == errors_between(name, word) == errors


def test_an_unknown_name_lists_what_there_is():
    assert unknown_name("on", ["one", "two"]) == "'on' is unknown: choose from one, two"
    assert unknown_name("twoo", ["one", "two"]) == (
        "'twoo' is unknown: did you mean 'two'? choose from one, two"
    )
