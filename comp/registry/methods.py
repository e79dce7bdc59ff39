"""The pruning methods, one record each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from comp.errors import CompExportError
from comp.registry.code import resolve
from comp.registry.families import FAMILIES
from comp.registry.family import Family
from comp.registry.modes import Kind, any_of

MethodCode = Callable[[Any], Any]
"""From a ``comp.search.job.PruningJob`` to an ``Outcome``."""

F = TypeVar("F", bound=MethodCode)


@dataclass(frozen=True)
class Method:
    """A pruning method: what it removes, its families, and the reasons why others are not supported.

    Attributes:
        prunes: the kinds of modes that it prunes; modes of other kinds are ignored.
        only: names of its families; ``None``: every family.
        elsewhere: by unsupported family, the reason.
        spares: by family, modes of these kinds that are ignored nevertheless.
        together: whether it needs a mode of each kind.
        differentiates: whether it needs gradients even without training.
        code: the function that prunes; ``None``: ``prune`` of the module in ``comp.methods`` with this name,
            hyphens as underscores.
    """

    name: str
    removes: tuple[str, ...]
    prunes: tuple[Kind, ...]
    description: str
    only: tuple[str, ...] | None = None
    elsewhere: dict[str, str] = field(default_factory=dict)
    spares: dict[str, tuple[str, ...]] = field(default_factory=dict)
    together: bool = False
    differentiates: bool = False
    code: MethodCode | None = None

    def load(self) -> MethodCode:
        """Return the function that prunes.

        It may train the adapter's trainable weights. It raises ``CompExportError`` for a rate that the modes
        cannot reach, and names the largest reachable rate.
        """
        name = self.name.replace("-", "_")
        return self.code or resolve(f"comp.methods.{name}:prune")

    @property
    def families(self) -> tuple[str, ...]:
        """Names of the families that it supports."""
        return tuple(family.name for family in FAMILIES if self.takes(family))

    def takes(self, family: Family) -> bool:
        """Whether it supports a family."""
        return self.only is None or family.name in self.only

    def why_not(self, family: Family) -> str:
        """Return the reason why it does not support a family."""
        return self.elsewhere.get(family.name, f"it is only for {', '.join(self.only or ())}")

    def described(self) -> dict[str, Any]:
        """Return its fields, and the families that it supports."""
        fields = {name: value for name, value in vars(self).items() if name not in ("only", "code")}
        return fields | {"families": self.families}

    def modes_among(self, modes: Sequence[str], family: Family) -> tuple[str, ...]:
        """Return the modes that the method prunes in a model of the family.

        Unknown names are kept: the loaded model refuses them.

        Raises:
            CompExportError: the method is not for the family, or none of the modes is for the method, or
                none of a kind that it needs.
        """
        if not self.takes(family):
            others = ", ".join(m.name for m in METHODS if m.takes(family))
            raise CompExportError(
                f"--method {self.name} is not for {family.name} models: {self.why_not(family)}; "
                f"choose from {others}"
            )
        fitting = [mode for mode in family.modes if self._fits(mode, family)]
        prunable = tuple(mode for mode in modes if mode not in family.modes or mode in fitting)
        if not prunable:
            raise CompExportError(
                f"--method {self.name} prunes {' and '.join(self.prunes)} alone, and --modes names only "
                f"{', '.join(modes)}: name some of {', '.join(fitting)}, or choose another --method"
            )
        lacking = next((k for k in self.prunes if self.together and not any_of(k, prunable)), None)
        if lacking is not None and all(mode in fitting for mode in prunable):
            missing = ", ".join(mode for mode in fitting if any_of(lacking, [mode]))
            raise CompExportError(
                f"--method {self.name} prunes {' and '.join(self.prunes)} together, and --modes names "
                f"none of {lacking} in {', '.join(modes)}: name some of {missing}, or choose another "
                "--method"
            )
        return prunable

    def _fits(self, mode: str, family: Family) -> bool:
        spared = mode in self.spares.get(family.name, ())
        return not spared and any(any_of(kind, [mode]) for kind in self.prunes)


SHUFFLED = ("smolvlm", "idefics3", "internvl")
"""Families whose connectors join neighbouring image tokens."""
DECODERS = ("llava", *SHUFFLED)
"""Families whose language model reads image tokens."""


def _of_image_tokens(name: str, description: str) -> Method:
    """Return the record of a method that drops image tokens in the language model of a LLaVA."""
    reason = "it drops image tokens between the blocks of a language model that reads them"
    return Method(
        name=name,
        removes=("image tokens",),
        prunes=("vision_tokens",),
        only=DECODERS,
        description=description,
        elsewhere={"clip": reason, "blip": reason},
    )


def _jointly(name: str, order: str) -> Method:
    """Return the record of simple joint pruning in an order."""
    return Method(
        name=name,
        removes=("attention heads", "FFN channels", "tokens"),
        prunes=("parameters", "tokens"),
        description="Simple joint pruning: parameters as upop, tokens as pdrop (LLaVA) or madtp, "
        f"uncoordinated, {order}",
        spares=dict.fromkeys(DECODERS, ("language_tokens",)),
        together=True,
        differentiates=True,
    )


METHODS: list[Method] = [
    Method(
        name="comp",
        removes=("attention heads", "FFN channels", "tokens"),
        prunes=("parameters", "tokens"),
        description="Collaborative multi-mode pruning: importances that weigh each other (CIM), "
        "and a strategy that picks the next mode by its cost (MPS)",
    ),
    Method(
        name="wanda",
        removes=("attention heads", "FFN channels"),
        prunes=("parameters",),
        description="Weight magnitude times input norm, the same share of every layer, no training",
    ),
    Method(
        name="upop",
        removes=("attention heads", "FFN channels"),
        prunes=("parameters",),
        description="Unified and progressive pruning: masks shrink while the model trains; "
        "every stage ranks heads and channels by the masks' gradients",
        differentiates=True,
    ),
    Method(
        name="mope",
        removes=("attention heads", "FFN channels"),
        prunes=("parameters",),
        description="Module-wise pruning error: rise of the loss without a module; width first, "
        "then depth, no training",
    ),
    _jointly("sjp", "in every stage"),
    _jointly("sjp-sequential", "one after the other, in half of the stages each"),
    _of_image_tokens(
        "fastv", "Once, after two layers: the least attended by the last token, heads averaged"
    ),
    _of_image_tokens(
        "pdrop", "The same share at three depths, ranked by the attention of the layer that follows"
    ),
    _of_image_tokens("dart", "Once, after two layers: those that repeat a few pivot tokens"),
    Method(
        name="visionzip",
        removes=("image tokens",),
        prunes=("vision_tokens",),
        only=("llava",),
        description="After the vision tower: keeps the tokens that [CLS] attends to most, and merges the "
        "others into a few, no training",
        elsewhere=dict.fromkeys(
            ("clip", "blip"),
            "it drops tokens between an image encoder and the language model that reads them; turbo and "
            "madtp drop them within the encoder",
        )
        | dict.fromkeys(
            SHUFFLED,
            "it chooses image tokens one by one, and their connector joins neighbours to one token",
        ),
    ),
    Method(
        name="turbo",
        removes=("tokens",),
        prunes=("tokens",),
        only=("clip", "blip"),
        description="Attention of [CLS] minus redundancy; dropped tokens are merged into the most similar "
        "kept ones, no training",
        elsewhere=dict.fromkeys(
            DECODERS,
            "its language model sees image and text tokens in one causal sequence, where none is [CLS] and a "
            "merged token would show earlier tokens something of later ones",
        ),
    ),
    Method(
        name="crossget",
        removes=("tokens",),
        prunes=("tokens",),
        only=("clip",),
        description="The same number of tokens in every block: merges those that are most similar to another "
        "and least to the query of [CLS]; attention counts merged tokens; no training",
        elsewhere=dict.fromkeys(
            DECODERS,
            "it merges tokens within an image encoder, which is a small part of the model's cost; visionzip "
            "merges those of a llava after it",
        )
        | {
            "blip": "only attention in clip's towers is raised by the number of merged tokens; turbo merges "
            "without that",
        },
    ),
    Method(
        name="madtp",
        removes=("tokens",),
        prunes=("tokens",),
        only=("clip", "blip"),
        description="Attention received, attention of [CLS], and response to a learned dictionary that "
        "both encoders share; dropped tokens are merged into one",
        elsewhere=dict.fromkeys(
            DECODERS,
            "it aligns the tokens of an image encoder with those of a text encoder, and the model has none",
        ),
    ),
]
"""All that is registered, in order (``register_method``)."""


def method_called(name: str) -> Method:
    """Return the method of this name, which is one of ``METHODS``."""
    return next(method for method in METHODS if method.name == name)


def register_method(
    name: str,
    prunes: Sequence[Kind],
    description: str,
    *,
    removes: Sequence[str] = (),
    families: Sequence[str] | None = None,
    differentiates: bool = False,
) -> Callable[[F], F]:
    """Register a pruning method for ``method=NAME``; a decorator of its function.

    Args:
        name: the name for users.
        prunes: the kinds of modes that it prunes.
        description: a sentence for users.
        removes: what it removes, for users; by default the kinds of modes.
        families: names of its families; ``None``: every family.
        differentiates: whether it needs gradients even without training.

    Raises:
        CompExportError: the name is taken.
    """
    if any(method.name == name for method in METHODS):
        raise CompExportError(f"the method {name!r} is registered already: choose another name")

    def register(function: F) -> F:
        METHODS.append(
            Method(
                name=name,
                removes=tuple(removes or prunes),
                prunes=tuple(prunes),
                description=description,
                only=None if families is None else tuple(families),
                differentiates=differentiates,
                code=function,
            )
        )
        return function

    return register
