"""Pictures unlike the data of the embedded models are noticed; those of the data are not."""

import json
from importlib.resources import files
from pathlib import Path

import gradio
import numpy as np
import pytest
from PIL import Image

from comp.data.emoji_scenes.examples import EmojiScenes
from comp.data.emoji_scenes.scenes import render
from demo.likeness import FIRST, STORED, likeness, notice, statistics, statistics_of_data

PHOTOGRAPHS = Path(gradio.__file__).parent / "media_assets" / "images"


def test_pictures_of_the_data_are_like_it():
    scenes = EmojiScenes("test")
    pictures = [render(scenes.scene(index)[0])[0] for index in range(40)]
    assert sum(likeness(picture).unlike for picture in pictures) <= 1


@pytest.mark.parametrize("name", ["lion.jpg", "cheetah1.jpg", "tower.jpg", "bus.png"])
def test_photographs_are_unlike_the_data(name):
    assert likeness(PHOTOGRAPHS / name).unlike


@pytest.mark.parametrize(
    "picture",
    [
        Image.new("RGB", (90, 90), "white"),
        Image.new("RGB", (90, 90), "red"),
        Image.effect_noise((90, 60), 80).convert("RGB"),
    ],
)
def test_plain_colours_and_noise_are_unlike_the_data(picture):
    assert likeness(picture).unlike


def test_the_notice_says_what_it_is():
    lion = PHOTOGRAPHS / "lion.jpg"
    words = notice("tiny-llava", [lion])
    assert "168 emoji" in words
    assert "colours and edges" in words
    assert notice("llava-hf/llava-1.5-7b-hf", [lion]) == ""
    assert notice("tiny-llava", [render(EmojiScenes("test").scene(0)[0])[0]]) == ""


def test_the_stored_statistics_are_those_of_the_data():
    """``python -m demo.likeness`` writes them again."""
    stored = json.loads((files("demo") / STORED).read_text(encoding="utf-8"))
    assert np.allclose(statistics_of_data(FIRST), stored["first"], rtol=1e-3, atol=1e-4)
    assert np.shape(stored["inverse"]) == (len(stored["mean"]),) * 2
    assert statistics(Image.new("L", (5, 5))).shape == np.shape(stored["mean"])
