"""Command ``comp-export models``: show models, families and methods."""

import math
from pathlib import Path
from typing import Any

import click

from comp.commands.options import CommonOptions, common_options
from comp.utils.console import print_entries, print_json, print_table

METHODS_TITLE = "Methods (--method)"


@click.command()
@click.option(
    "--methods",
    is_flag=True,
    help="Only the pruning methods, their families, and why the others are not supported.",
)
@common_options
def command(methods: bool, options: CommonOptions) -> None:
    """Show embedded models and aliases, families and methods, and what each supports."""
    from comp.checkpoints.locate import ALIASES
    from comp.registry.families import FAMILIES
    from comp.registry.methods import METHODS

    if methods:
        _show_methods(options)
        return
    models = _models()
    if options.json:
        families = [family.described() for family in FAMILIES]
        described = [method.described() for method in METHODS]
        print_json({"models": models, "families": families, "methods": described})
        return
    print_table(
        "Models (--model also takes a directory or a hub id)",
        ("name", "family", "task", "layers", "image tokens", "parameters"),
        (
            (
                model["name"],
                model["family"],
                model["task"],
                model["layers"],
                model["image_tokens"],
                f"{model['params'] / 1e6:,.1f} M",
            )
            for model in models
        ),
        numbers_from=3,
    )
    print_entries(
        "From the hub (the others are embedded in the package)",
        [(name, [repository]) for name, repository in ALIASES.items()],
    )
    print_entries(
        "Families",
        [
            (
                family.name,
                [
                    family.description,
                    "modes (* by default): "
                    + ", ".join(m + "*" * (m in family.default_modes) for m in family.modes),
                    f"exports: {', '.join(family.exports)}",
                ],
            )
            for family in FAMILIES
        ],
    )
    print_entries(
        METHODS_TITLE,
        [
            (
                method.name,
                [
                    method.description,
                    f"removes: {', '.join(method.removes)}; families: {', '.join(method.families)}",
                ],
            )
            for method in METHODS
        ],
    )


def _show_methods(options: CommonOptions) -> None:
    from comp.registry.families import FAMILIES
    from comp.registry.methods import METHODS

    if options.json:
        print_json({"methods": [method.described() for method in METHODS]})
        return
    print_entries(
        METHODS_TITLE,
        [
            (
                method.name,
                [
                    method.description,
                    f"removes: {', '.join(method.removes)}",
                    *(
                        f"{family.name}: "
                        + ("yes" if method.takes(family) else f"no: {method.why_not(family)}")
                        for family in FAMILIES
                    ),
                ],
            )
            for method in METHODS
        ],
    )


def _models() -> list[dict[str, Any]]:
    from comp.checkpoints.locate import ALIASES, EMBEDDED

    return [
        {"name": name, "source": ALIASES.get(name, "embedded in the package")} | _sizes(name)
        for name in (*EMBEDDED, *ALIASES)
    ]


def _sizes(name: str) -> dict[str, Any]:
    """Return family, task, blocks, tokens of an image, and parameters of a model."""
    from comp.checkpoints.encoder_shape import EncoderShape
    from comp.checkpoints.llava_shape import ModelShape, config_of
    from comp.checkpoints.locate import resolve_model
    from comp.flops.llava import llava_params
    from comp.registry.families import family_of

    config = config_of(name)
    family = family_of(config.get("model_type"))
    assert family is not None
    if family.reads_image_tokens:
        shape = ModelShape.from_config(config, name)
        return {
            "family": family.name,
            "task": "question",
            "layers": shape.num_layers,
            "image_tokens": shape.image_tokens,
            "params": sum(llava_params(shape).values()),
        }
    encoder = EncoderShape.from_config(config, name)
    decoder = 0 if encoder.decoder is None else len(encoder.decoder.blocks)
    return {
        "family": family.name,
        "task": encoder.task,
        "layers": len(encoder.vision.blocks) + len(encoder.text.blocks) + decoder,
        "image_tokens": encoder.vision.tokens,
        "params": _stored_params(resolve_model(name)),
    }


def _stored_params(directory: Path) -> int:
    """Number of parameters in a checkpoint, from the files' headers."""
    from safetensors import safe_open

    total = 0
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return total
