"""Adapters of SmolVLM and Idefics3."""

from comp.families.llava.adapter import LlavaAdapter
from comp.families.smolvlm.slim import (
    CompIdefics3ForConditionalGeneration,
    CompSmolVLMForConditionalGeneration,
)


class SmolVLMAdapter(LlavaAdapter):
    """Adapter of a loaded SmolVLM, dense or slim."""

    name = "smolvlm"
    slim_class = CompSmolVLMForConditionalGeneration


class Idefics3Adapter(LlavaAdapter):
    """Adapter of a loaded Idefics3, dense or slim."""

    name = "idefics3"
    slim_class = CompIdefics3ForConditionalGeneration
