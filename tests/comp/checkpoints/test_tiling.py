"""Pictures cut into tiles, and their words in a prompt, against transformers' own processors."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    GotOcr2ImageProcessorPil,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    SmolVLMImageProcessorPil,
)

from comp.checkpoints.image_processor import read_image_processing
from comp.checkpoints.image_prompt import MarkedTiles, with_tiles
from comp.checkpoints.image_settings import ImageProcessing
from comp.checkpoints.tiling import Grid, grid_of
from comp.errors import CompExportError
from serve.engines.preprocess import model_views, preprocess
from tests.export.tiny_tiled import tiled_tokenizer

EDGE = 8
MODES = ("RGB", "L", "LA", "RGBA", "P", "CMYK", "1")


def settings_of(directory: Path, name: str, **fields: object) -> ImageProcessing:
    parts = {"text_config": {}, "vision_config": {}}
    (directory / "config.json").write_text(json.dumps({"model_type": "clip", **parts}))
    (directory / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": f"{name}ImageProcessor"} | fields)
    )
    return read_image_processing(directory)


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(width * 100 + height).integers(0, 256, (height, width, 4))
    return Image.fromarray(values.astype(np.uint8)).convert("RGB").convert(mode)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from((EDGE, 2 * EDGE, 3 * EDGE, 21)),
    st.booleans(),
    st.sampled_from(MODES),
)
def test_tiles_equal_transformers(tmp_path, width, height, longest, splits, mode) -> None:
    fields = {
        "size": {"longest_edge": longest},
        "max_image_size": {"longest_edge": EDGE},
        "do_image_splitting": splits,
    }
    ours = settings_of(tmp_path, "SmolVLM", **fields)
    theirs = SmolVLMImageProcessorPil(**fields, return_row_col_info=True)
    shown = picture(width, height, mode)
    expected = theirs([shown], return_tensors="np")
    result = preprocess([shown], ours)
    np.testing.assert_array_equal(result, expected["pixel_values"][0])
    assert ours.tiles is not None
    grid = grid_of(width, height, ours.tiles)
    assert (grid.rows, grid.columns) == (expected["rows"][0][0], expected["cols"][0][0])
    assert grid.tiles == len(result) == len(model_views(shown, ours))


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from(((1, 12), (1, 1), (2, 6), (3, 40))),
    st.sampled_from(MODES),
)
def test_tiles_by_aspect_ratio_equal_transformers(tmp_path, width, height, bounds, mode) -> None:
    fields = {
        "size": {"height": EDGE, "width": EDGE},
        "min_patches": bounds[0],
        "max_patches": bounds[1],
    }
    ours = settings_of(tmp_path, "GotOcr2", **fields)
    theirs = GotOcr2ImageProcessorPil(**fields)
    shown = picture(width, height, mode)
    expected = theirs([shown], crop_to_patches=True, return_tensors="np")
    result = preprocess([shown], ours)
    np.testing.assert_array_equal(result, expected["pixel_values"])
    assert ours.tiles is not None
    assert grid_of(width, height, ours.tiles).tiles == len(result) == expected["num_patches"][0]


@pytest.mark.parametrize("size", [(448, 448), (4480, 448), (1, 5000), (3840, 2160), (900, 1300)])
def test_the_default_tiles_of_an_internvl_equal_transformers(tmp_path, size) -> None:
    """Without decoding: the published settings, at sizes of real pictures."""
    tiles = settings_of(tmp_path, "GotOcr2", size={"height": 448, "width": 448}).tiles
    assert tiles is not None
    theirs = GotOcr2ImageProcessorPil(size={"height": 448, "width": 448}, crop_to_patches=True)
    width, height = size
    wanted = theirs.get_number_of_image_patches(height, width, {"patch_size": theirs.size})
    assert grid_of(width, height, tiles).tiles == wanted


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": {"height": 8, "width": 9}}, "tiles are squares"),
        ({"max_patches": 0}, "max_patches of GotOcr2ImageProcessor is 0, no number of tiles"),
        ({"min_patches": 5, "max_patches": 4}, "min_patches .* and max_patches is 4"),
        ({"crop_to_patches": "yes"}, "crop_to_patches"),
        ({"max_image_size": {"longest_edge": 8}}, "max_image_size .* which is not known"),
    ],
)
def test_unusable_bounds_are_refused_by_name(tmp_path, fields, message) -> None:
    with pytest.raises(CompExportError, match=message):
        settings_of(tmp_path, "GotOcr2", **fields)


@pytest.mark.parametrize("name", ["SmolVLM", "Idefics3"])
def test_defaults_are_those_of_the_classes(tmp_path, name) -> None:
    ours = settings_of(tmp_path, name)
    kind = {"SmolVLM": SmolVLMImageProcessorPil, "Idefics3": Idefics3ImageProcessorPil}[name]
    shown = picture(400, 300)
    expected = kind()([shown], return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(preprocess([shown], ours), expected)


@pytest.mark.parametrize("size", [(10, 10), (60, 20), (20, 60), (84, 84)])
def test_words_of_a_picture_equal_those_of_the_processor(tmp_path, size) -> None:
    tokenizer = tiled_tokenizer()
    fields = {"size": {"longest_edge": 84}, "max_image_size": {"longest_edge": 28}}
    images = Idefics3ImageProcessorPil(**fields)
    theirs = Idefics3Processor(images, tokenizer, image_seq_len=1)
    tiles = settings_of(tmp_path, "Idefics3", **fields).tiles
    assert tiles is not None
    pictures = [picture(*size), picture(28, 56)]
    text = "what <image> is <image> this"
    expected = theirs(images=[pictures], text=[text])["input_ids"][0]
    grids = [grid_of(*each.size, tiles) for each in pictures]
    assert tokenizer(with_tiles(text, "<image>", MarkedTiles(), grids))["input_ids"] == expected


def test_pictures_and_image_tokens_must_agree() -> None:
    with pytest.raises(CompExportError, match="shows <image> 2 times for 1 pictures"):
        with_tiles("<image> <image>", "<image>", MarkedTiles(), [Grid()])
    assert with_tiles("<image> x", "<image>", None, ()) == "<image> x"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": {"height": 8, "width": 8}}, "size of SmolVLMImageProcessor is .* cuts tiles by"),
        ({"max_image_size": {"longest_edge": 0}}, "max_image_size"),
        ({"do_resize": False}, "do_resize of SmolVLMImageProcessor is False"),
        ({"do_center_crop": True}, "do_center_crop"),
        ({"tile_overlap": 3}, "tile_overlap .* which is not known"),
    ],
)
def test_unusable_fields_are_refused_by_name(tmp_path, fields, message) -> None:
    with pytest.raises(CompExportError, match=message):
        settings_of(tmp_path, "SmolVLM", **fields)


def test_fields_of_tiles_are_unknown_to_other_classes(tmp_path) -> None:
    with pytest.raises(CompExportError, match=r"max_image_size .* which is not known"):
        settings_of(tmp_path, "CLIP", max_image_size={"longest_edge": 8})
