"""Train large models by LoRA, through peft: small trainable matrices added to the frozen weights."""

from collections.abc import Iterator
from contextlib import contextmanager

from comp.adapter import FamilyAdapter
from comp.errors import CompExportError
from comp.utils.install import install_hint


@contextmanager
def lora(adapter: FamilyAdapter, rank: int) -> Iterator[None]:
    """Train by LoRA inside the block; merge into the weights at its end, unless it raises.

    The adapter's model is changed in place, so that masks and observers keep working.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise CompExportError(
            f"LoRA needs the package peft: {install_hint('train')}, or use --recover full"
        ) from error
    wrapped = get_peft_model(
        adapter.model,
        LoraConfig(
            r=rank, lora_alpha=2 * rank, target_modules=adapter.lora_targets, lora_dropout=0.0
        ),
    )
    try:
        yield
    except BaseException:
        wrapped.unload()
        raise
    wrapped.merge_and_unload()


@contextmanager
def without_lora(adapter: FamilyAdapter) -> Iterator[None]:
    """Turn the LoRA layers of the adapter's model off inside the block."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in adapter.model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(enabled=True)
