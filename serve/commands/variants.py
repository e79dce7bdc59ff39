"""The options that choose the artifacts of a run, and the backend that runs them."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast, get_args

import click

from export.artifact.manifest import Flavour, Precision
from serve.artifacts import ArtifactVariant
from serve.backends.base import BackendName, ProviderChoice

F = TypeVar("F", bound=Callable[..., Any])


def variant_options(function: F) -> F:
    """Add ``--backend``, ``--provider``, ``--flavour`` and ``--precision``; pass ``variant``."""

    @click.option(
        "--backend",
        type=click.Choice(get_args(BackendName)),
        default="onnxruntime",
        show_default=True,
        help="onnxruntime and openvino (on the CPU) run the ONNX artifacts, openvino-bfloat16 those in int8 "
        "or int4, computing in bfloat16, tensorrt the engines (on an NVIDIA GPU).",
    )
    @click.option(
        "--provider",
        type=click.Choice(get_args(ProviderChoice)),
        default="auto",
        show_default=True,
        help="Execution provider of ONNX Runtime; auto: cuda if available, else cpu.",
    )
    @click.option(
        "--flavour",
        type=click.Choice(get_args(Flavour)),
        help="Flavour of the artifacts [default: the best for backend and provider].",
    )
    @click.option(
        "--precision",
        type=click.Choice(get_args(Precision)),
        help="Precision of the artifacts [default: float32; for tensorrt float16, for openvino-bfloat16 "
        "int8].",
    )
    @functools.wraps(function)
    def wrapper(
        *args: Any,
        backend: BackendName,
        provider: ProviderChoice,
        flavour: Flavour | None,
        precision: Precision | None,
        **kwargs: Any,
    ) -> Any:
        variant = ArtifactVariant.choose(backend, provider, flavour, precision)
        return function(*args, variant=variant, **kwargs)

    return cast(F, wrapper)
