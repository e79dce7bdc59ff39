"""Shapes that graphs are built from, read of checkpoints."""

from pathlib import Path

from comp.checkpoints.locate import read_config
from export.configs.blip import BlipShape, blip_of
from export.configs.clip import ClipShape, clip_of
from export.configs.llava import LlavaShape, llava_of


def read_blip(directory: Path) -> BlipShape:
    return blip_of(read_config(directory), str(directory))


def read_clip(directory: Path) -> ClipShape:
    return clip_of(read_config(directory), str(directory))


def read_llava(directory: Path) -> LlavaShape:
    return llava_of(read_config(directory), str(directory))
