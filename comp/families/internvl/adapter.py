"""Adapter of InternVL."""

from comp.families.internvl.slim import CompInternVLForConditionalGeneration
from comp.families.llava.adapter import LlavaAdapter


class InternVLAdapter(LlavaAdapter):
    """Adapter of a loaded InternVL, dense or slim."""

    name = "internvl"
    slim_class = CompInternVLForConditionalGeneration
