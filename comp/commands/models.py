"""``comp-export models``: what can be compressed, and how."""

from dataclasses import asdict
from typing import Any

import click

from comp.console import print_json, print_table
from comp.options import CommonOptions, common_options


@click.command()
@common_options
def command(options: CommonOptions) -> None:
    """Show embedded models and aliases, families and methods, and what each supports."""
    from comp.registry import FAMILIES, METHODS

    models = _models()
    if options.json:
        families = [asdict(family) for family in FAMILIES]
        methods = [asdict(method) for method in METHODS]
        print_json({"models": models, "families": families, "methods": methods})
        return
    print_table(
        "Models (--model also takes a directory or a hub id)",
        ("name", "family", "from", "layers", "image tokens", "parameters"),
        (
            (
                model["name"],
                model["family"],
                model["source"],
                model["layers"],
                model["image_tokens"],
                f"{model['params'] / 1e6:,.1f} M",
            )
            for model in models
        ),
        numbers_from=3,
    )
    print_table(
        "Families",
        ("name", "description", "modes (* by default)", "exports"),
        (
            (
                family.name,
                family.description,
                ", ".join(m + "*" * (m in family.default_modes) for m in family.modes),
                ", ".join(family.exports),
            )
            for family in FAMILIES
        ),
        numbers_from=4,
    )
    print_table(
        "Methods (--method)",
        ("name", "removes", "families", "description"),
        ((m.name, ", ".join(m.removes), ", ".join(m.families), m.description) for m in METHODS),
        numbers_from=4,
    )


def _models() -> list[dict[str, Any]]:
    from comp.checkpoints import ALIASES, EMBEDDED
    from comp.flops import llava_params
    from comp.shapes import read_shape

    found = []
    for name in (*EMBEDDED, *ALIASES):
        shape = read_shape(name)
        found.append(
            {
                "name": name,
                "family": "llava",
                "source": ALIASES.get(name, "embedded in the package"),
                "layers": shape.num_layers,
                "image_tokens": shape.image_tokens,
                "params": sum(llava_params(shape).values()),
            }
        )
    return found
