"""An image processor's file gives the pixels of transformers, or is refused by name."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.processing_utils import ImagesKwargs

from comp.checkpoints.image_classes import CLASSES, FIELDS, HARMLESS
from comp.checkpoints.image_processor import (
    find_image_processor,
    read_image_processing,
    require_image_size,
)
from comp.checkpoints.image_settings import ImageSize
from comp.data.example import Example, PairExample
from comp.errors import CompExportError
from comp.families.blip.tasks import BlipStatements
from comp.families.image_processor import load_image_processor
from comp.families.loading import load_adapter
from comp.registry.families import FAMILIES
from export.exporter import Origin, export_artifact
from serve.engines.preprocess import model_view, preprocess
from tests.comp.small import small_adapter
from tests.comp.small_blip import random_blip
from tests.comp.small_clip import random_clip

OF_FAMILY = {family.name: family.image_processor for family in FAMILIES}
# Classes that cut pictures into tiles are in tests/comp/checkpoints/test_tiling.py.
WHOLE = [name for name, kind in CLASSES.items() if kind.tile is None]

NAMED = "preprocessor_config.json"
OF_FAMILY = {family.name: family.image_processor for family in FAMILIES}
# Classes that cut pictures into tiles are in tests/comp/checkpoints/test_tiling.py.
WHOLE = [name for name, kind in CLASSES.items() if kind.tile is None]
MODES = ("RGB", "L", "LA", "RGBA", "P", "1", "CMYK")
# Steps that only some classes take; their entries in the table were read from the source.
OWN = {"LlavaImageProcessor": {"pad_to_square", "_preprocess"}}


def photo(width, height, mode="RGB"):
    rng = np.random.default_rng(width * 1000 + height)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 4), dtype=np.uint8))
    return (
        coarse.resize((width, height), Image.Resampling.BICUBIC)
        .convert("RGB" if mode in "P1 CMYK" else mode)
        .convert(mode)
    )


def write(directory, fields, model_type="clip", name=NAMED):
    parts = {"text_config": {}, "vision_config": {}}
    (directory / "config.json").write_text(json.dumps({"model_type": model_type, **parts}))
    (directory / name).write_text(json.dumps(fields))
    return directory


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoint")


def check_equal(directory, pictures):
    """Check that serving and training equal transformers, bit for bit."""
    theirs = AutoImageProcessor.from_pretrained(directory)
    trains = load_image_processor(directory)
    assert type(trains) is type(theirs)
    processing = read_image_processing(directory)
    for picture in pictures:
        expected = theirs([picture], return_tensors="np")["pixel_values"]
        np.testing.assert_array_equal(preprocess([picture], processing), expected)
        np.testing.assert_array_equal(np.stack(trains([picture])["pixel_values"]), expected)
    return expected


@pytest.mark.parametrize("name", WHOLE)
def test_the_table_equals_the_classes_of_transformers(name):
    kind, theirs = CLASSES[name], getattr(transformers, f"{name}Pil")
    assert theirs.valid_kwargs is ImagesKwargs
    assert theirs.__mro__[1].__name__ == "PilBackend"
    assert {k for k, v in vars(theirs).items() if callable(v)} - {"__init__"} == OWN.get(
        name, set()
    )
    assert kind.size == theirs.size
    assert kind.default_to_square == theirs.default_to_square
    assert tuple(kind.image_mean) == tuple(theirs.image_mean)
    assert tuple(kind.image_std) == tuple(theirs.image_std)
    assert kind.resample == int(theirs.resample)
    for field in ("crop_size", "do_center_crop", "do_convert_rgb"):
        assert getattr(kind, field) == getattr(theirs, field, None)
    assert (theirs.do_resize, theirs.do_rescale, theirs.do_normalize) == (True, True, True)
    assert theirs.rescale_factor == 1 / 255
    assert not getattr(theirs, "do_pad", None)
    assert getattr(theirs, "pad_size", None) is None


def test_the_class_of_a_family_equals_that_of_its_models():
    for family, name in OF_FAMILY.items():
        assert IMAGE_PROCESSOR_MAPPING_NAMES[family]["pil"] == f"{name}Pil"


@pytest.mark.parametrize(
    "fields",
    [
        *({"image_processor_type": f"{n}{end}"} for n in CLASSES for end in ("", "Fast", "Pil")),
        *({"feature_extractor_type": n} for n in ("CLIPFeatureExtractor", "ViTFeatureExtractor")),
        {
            "feature_extractor_type": "CLIPFeatureExtractor",
            "image_processor_type": "BlipImageProcessor",
        },
        {"feature_extractor_type": "ViTFeatureExtractor", "image_processor_type": None},
        {
            "auto_map": {"AutoImageProcessor": "code.Own"},
            "image_processor_type": "ViTImageProcessor",
        },
        {
            "auto_map": {"AutoImageProcessor": "code.Own"},
            "feature_extractor_type": "ViTFeatureExtractor",
        },
    ],
    ids=str,
)
def test_class_names_are_mapped(fields, tmp_path):
    write(tmp_path, fields)
    theirs = type(AutoImageProcessor.from_pretrained(tmp_path)).__name__
    assert f"{find_image_processor(tmp_path).kind.name}Pil" == theirs


@pytest.mark.parametrize("family", [name for name in OF_FAMILY if OF_FAMILY[name] in WHOLE])
def test_a_file_without_a_class_uses_the_class_of_the_model(family, tmp_path):
    write(tmp_path, {"size": 30, "crop_size": 30}, family)
    check_equal(tmp_path, [photo(64, 64)])
    write(tmp_path, {"size": 30, "crop_size": 30}, f"comp_{family}")
    assert find_image_processor(tmp_path).kind.name == OF_FAMILY[family]


def test_the_nested_file_takes_precedence(tmp_path):
    nested = {"image_processor": {"image_processor_type": "ViTImageProcessor", "size": 30}}
    write(tmp_path, nested, name="processor_config.json")
    assert check_equal(tmp_path, [photo(40, 20)]).shape == (1, 3, 30, 30)
    write(tmp_path, {"image_processor_type": "BlipImageProcessor", "size": 31})
    assert check_equal(tmp_path, [photo(40, 20)]).shape == (1, 3, 30, 30)
    write(tmp_path, {"patch_size": 14}, name="processor_config.json")  # has none inside
    assert check_equal(tmp_path, [photo(40, 20)]).shape == (1, 3, 31, 31)


@pytest.mark.parametrize(
    ("name", "fields", "shape"),
    [
        ("BlipImageProcessor", {"size": 48}, (48, 48)),
        ("BlipImageProcessor", {"size": 48, "do_pad": True, "size_divisor": 32}, (48, 48)),
        ("BlipImageProcessor", {"size": [40, 48]}, (40, 48)),
        ("BlipImageProcessor", {"size": 20, "do_pad": True, "pad_size": [24, 28]}, (24, 28)),
        ("BlipImageProcessor", {"size": 48, "crop_size": 32}, (48, 48)),
        ("BlipImageProcessor", {"size": 48, "do_center_crop": True, "crop_size": 32}, (32, 32)),
        ("CLIPImageProcessor", {"size": 48, "crop_size": 40}, (40, 40)),
        ("CLIPImageProcessor", {"size": 250}, (224, 224)),
        ("CLIPImageProcessor", {"size": {"height": 50, "width": 60}, "crop_size": 40}, (40, 40)),
        (
            "CLIPImageProcessor",
            {"size": {"shortest_edge": 30, "longest_edge": 40}, "crop_size": 35},
            (35, 35),
        ),
        ("CLIPImageProcessor", {"use_square_size": True, "do_center_crop": False}, (224, 224)),
        ("LlavaImageProcessor", {"size": 48, "do_pad": True, "do_center_crop": False}, (48, 48)),
        ("LlavaImageProcessor", {"size": 48, "do_pad": True, "crop_size": 40}, (40, 40)),
        ("CLIPImageProcessor", {"size": 48, "do_pad": True, "crop_size": 40}, (40, 40)),
        ("ViTImageProcessor", {"size": 30}, (30, 30)),
        (
            "CLIPImageProcessor",
            {"image_mean": 0.5, "image_std": 0.8, "size": 30, "crop_size": 30},
            (30, 30),
        ),
    ],
    ids=str,
)
def test_fields_have_the_meaning_of_their_class(name, fields, shape, tmp_path):
    write(tmp_path, {"image_processor_type": name} | fields)
    pictures = [photo(90, 40), photo(30, 100), photo(50, 50, "L"), photo(33, 21, "P")]
    # do_convert_rgb is no default of every class: transformers then takes RGB alone.
    pictures = pictures if CLASSES[name].do_convert_rgb else pictures[:2]
    assert check_equal(tmp_path, pictures).shape == (1, 3, *shape)
    require_image_size(read_image_processing(tmp_path), shape[0], tmp_path) if shape[0] == shape[
        1
    ] else None
    assert model_view(photo(90, 40), read_image_processing(tmp_path)).size == shape[::-1]


def test_padding_to_a_square_uses_the_mean_colour(tmp_path):
    mean = {"image_mean": [1.0, 0.5, 0.0], "image_std": [1.0, 1.0, 1.0]}
    fields = {
        "size": 40,
        "crop_size": 40,
        "do_pad": True,
        "image_processor_type": "LlavaImageProcessor",
    }
    write(tmp_path, fields | mean)
    result = preprocess([photo(80, 20)], read_image_processing(tmp_path))[0]
    np.testing.assert_allclose(
        result[:, 0], np.repeat([[0.0], [-0.5 / 255], [0.0]], 40, axis=1), atol=1e-6
    )


WORDS = sorted({*FIELDS, *HARMLESS, *ImageSize.model_fields})
EDGE = st.integers(1, 40)
NUMBERS = st.floats(0.05, 0.95)
SIZE = st.one_of(
    EDGE,
    st.lists(EDGE, min_size=2, max_size=2),
    st.fixed_dictionaries({"height": EDGE, "width": EDGE}),
    st.fixed_dictionaries({"shortest_edge": EDGE}),
    st.fixed_dictionaries({"shortest_edge": EDGE, "longest_edge": EDGE}),
    st.fixed_dictionaries({"max_height": EDGE, "max_width": EDGE}),
    st.fixed_dictionaries({"longest_edge": EDGE}),
    st.none(),
)
BOX = st.one_of(
    EDGE,
    st.lists(EDGE, min_size=2, max_size=2),
    st.fixed_dictionaries({"height": EDGE, "width": EDGE}),
    st.fixed_dictionaries({"shortest_edge": EDGE}),
    st.none(),
)
COLOUR = st.one_of(st.none(), NUMBERS, st.lists(NUMBERS, min_size=3, max_size=3), st.just([0.5]))
SWITCH = st.sampled_from([True, False, None])
NAMES = st.sampled_from(sorted(WHOLE)).flatmap(
    lambda name: st.sampled_from([name, f"{name}Fast", f"{name}Pil"])
)
FILES = st.fixed_dictionaries(
    {"image_processor_type": NAMES},
    optional={
        "size": SIZE,
        "default_to_square": SWITCH,
        "crop_size": BOX,
        "pad_size": BOX,
        "resample": st.one_of(st.integers(0, 5), st.none()),
        "rescale_factor": st.one_of(st.floats(1e-4, 2), st.none()),
        "image_mean": COLOUR,
        "image_std": COLOUR,
        "use_square_size": SWITCH,
        "size_divisor": EDGE,
        "image_seq_length": EDGE,
        "data_format": st.sampled_from(["channels_first", "channels_last", None]),
        "input_data_format": st.sampled_from(["channels_first", "channels_last", None]),
        "return_tensors": st.sampled_from(["pt", "np", None]),
        "disable_grouping": SWITCH,
    }
    | {
        f"do_{step}": SWITCH
        for step in ("resize", "center_crop", "rescale", "normalize", "pad", "convert_rgb")
    },
)
PICTURES = st.one_of(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.sampled_from([(1, 1), (1, 300), (300, 1), (40, 40), (39, 40), (200, 7)]),
)


@settings(max_examples=120, deadline=None)
@given(FILES, PICTURES, st.sampled_from(MODES))
@example(
    {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 20}}, (21, 20), "RGB"
)
def test_pixels_of_any_file_and_picture_equal_transformers(place, fields, size, mode):
    write(place, fields)
    picture = photo(*size)
    try:
        theirs = AutoImageProcessor.from_pretrained(place)
        expected = theirs(picture, return_tensors="np")
    except (ValueError, TypeError, AttributeError):
        with pytest.raises(CompExportError):
            preprocess([picture], read_image_processing(place))
        return
    processing = read_image_processing(place)
    result = preprocess([picture], processing)
    np.testing.assert_array_equal(result, expected["pixel_values"])
    assert model_view(picture, processing).size == result.shape[:1:-1]
    if processing.output is not None:
        assert result.shape[2:] == processing.output
    trains = load_image_processor(place)
    np.testing.assert_array_equal(np.stack(trains([picture])["pixel_values"]), result)
    if processing.do_convert_rgb:
        other = photo(*size, mode)
        expected = theirs(other, return_tensors="np")
        np.testing.assert_array_equal(preprocess([other], processing), expected["pixel_values"])


REFUSED = {
    "an unknown step": ({"do_flip": True}, "do_flip of CLIPImageProcessor is True"),
    "an unknown number": ({"crop_pct": 0.9}, "crop_pct of CLIPImageProcessor is 0.9"),
    "patches of other models": ({"image_grid_pinpoints": [[1, 2]]}, "image_grid_pinpoints"),
    "the longest edge alone": ({"size": {"longest_edge": 9}}, "size of .* is {'longest_edge': 9}"),
    "an area": ({"size": {"min_pixels": 9, "max_pixels": 10}}, "size of"),
    "a size of nothing": ({"size": 0}, "size of .* is 0"),
    "a size in words": ({"size": "large"}, "size of .* is 'large'"),
    "no size": ({"size": None}, "size of .* is None"),
    "a size without width": ({"size": {"height": 9}}, "size of"),
    "a huge crop": ({"crop_size": 10**9}, "crop_size of"),
    "no crop": ({"crop_size": None}, "crop_size of .* do_center_crop needs one"),
    "a crop by an edge": ({"crop_size": {"shortest_edge": 9}}, "crop_size of"),
    "a filter's name": ({"resample": "bicubic"}, "resample of .* is 'bicubic'.* 3 bicubic"),
    "an unknown filter": ({"resample": 6}, "resample of .* is 6"),
    "a truth as a filter": ({"resample": True}, "resample of"),
    "a step in words": ({"do_resize": "no"}, "do_resize of .* is 'no', neither"),
    "two means": ({"image_mean": [0.5, 0.5]}, "image_mean of"),
    "no mean": ({"image_mean": None}, "image_mean of"),
    "a deviation of nothing": ({"image_std": [0.5, 0, 0.5]}, "image_std of"),
    "a factor in words": ({"rescale_factor": "1/255"}, "rescale_factor of"),
    "no factor": ({"rescale_factor": None}, "rescale_factor of"),
    "a huge factor": ({"rescale_factor": 10**400}, "rescale_factor of"),
    "padding to less": (
        {"do_pad": True, "pad_size": 20},
        "pad_size of .* is 20, less than the pictures of 224x224 have",
    ),
    "an unknown class": (
        {"image_processor_type": "OwnImageProcessor"},
        "'OwnImageProcessor', which",
    ),
    "a class of video": ({"image_processor_type": "VivitImageProcessor"}, "VivitImageProcessor"),
    "a class's former name": (
        {"image_processor_type": "CLIPFeatureExtractor"},
        "write 'CLIPImageProcessor'",
    ),
    "no name but a list": ({"image_processor_type": ["CLIPImageProcessor"]}, "is \\['CLIPImage"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_processors_are_refused_by_name(name, tmp_path):
    fields, words = REFUSED[name]
    write(tmp_path, {"image_processor_type": "CLIPImageProcessor"} | fields)
    with pytest.raises(CompExportError, match=words) as caught:
        read_image_processing(tmp_path)
    assert NAMED in str(caught.value)
    assert "\n" not in str(caught.value)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(WORDS), ANYTHING, max_size=4))
@example({"size": "large\nor small"})
def test_any_value_is_read_or_refused_in_one_line(place, fields):
    write(place, fields)
    refusal = ""
    try:
        processing = read_image_processing(place)
        assert processing.output is None or min(processing.output) > 0
    except CompExportError as error:
        refusal = str(error)
    assert "\n" not in refusal


def test_padding_to_a_square_needs_a_colour(tmp_path):
    for mean in (0.5, [2.0, 0.5, 0.5], [-0.5, 0.5, 0.5]):
        fields = {"image_processor_type": "LlavaImageProcessor", "do_pad": True, "image_mean": mean}
        write(tmp_path, fields)
        with pytest.raises(CompExportError, match="image_mean of LlavaImageProcessor"):
            read_image_processing(tmp_path)


def test_image_settings_in_a_tokenizer_are_refused(tmp_path):
    """The processors of transformers let it override the image processor."""
    random_clip(image_size=56).save(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"do_normalize": False}))
    theirs = AutoProcessor.from_pretrained(tmp_path)
    whole = theirs(images=[photo(90, 40)], text=["a cat"], return_tensors="np")["pixel_values"]
    alone = theirs.image_processor([photo(90, 40)], return_tensors="np")["pixel_values"]
    assert not np.array_equal(whole, alone)
    with pytest.raises(CompExportError, match=r"tokenizer_config\.json: do_normalize is False"):
        load_adapter(tmp_path)


def test_unset_fields_and_fields_without_effect_are_accepted(tmp_path):
    plain = read_image_processing(write(tmp_path, {"image_processor_type": "CLIPImageProcessor"}))
    more = {name: "cpu" for name in HARMLESS if not name.endswith("_type") and name != "auto_map"}
    fields = {"image_processor_type": "CLIPImageProcessor", "do_flip": None} | more
    assert read_image_processing(write(tmp_path, fields)) == plain


SAVED = {
    "llava": small_adapter,
    "clip": partial(random_clip, image_size=56),
    "caption": partial(random_blip, "caption"),
    "statement": partial(random_blip, "statement"),
}
SPELT = {
    "llava": {
        "image_processor_type": "LlavaImageProcessor",
        "do_pad": True,
        "size": 168,
        "crop_size": 168,
    },
    "clip": {"feature_extractor_type": "CLIPFeatureExtractor", "size": 60, "crop_size": 56},
    "caption": {"size": 168, "do_pad": True, "size_divisor": 32, "resample": 2},
    "statement": {"image_processor_type": "ViTImageProcessor", "size": [168, 168]},
}


@pytest.fixture(scope="module", params=SAVED)
def checkpoint(request, tmp_path_factory):
    """A checkpoint of each family and its image processor's fields in another spelling."""
    directory = tmp_path_factory.mktemp(request.param)
    SAVED[request.param]().save(directory)
    config = json.loads((directory / "processor_config.json").read_text())
    config.pop("image_processor")
    (directory / "processor_config.json").write_text(json.dumps(config))
    fields = SPELT[request.param]
    (directory / NAMED).write_text(json.dumps(fields))
    return directory, fields


def test_a_run_keeps_the_pixels_of_its_dense_model(checkpoint, tmp_path):
    """AutoProcessor gives the same pixels for the dense and the slim checkpoint, and so do we."""
    dense, _ = checkpoint
    pictures = [photo(90, 40), photo(40, 90)]
    # transformers knows no class for statements about two images, so the file of one names it.
    expected = AutoImageProcessor.from_pretrained(dense)(pictures, return_tensors="np")
    adapter = load_adapter(dense)
    pair = PairExample((pictures[0], pictures[1]), "a cat", answer=True, kind="any")
    single = [Example(picture, "what is it?", "a cat", "any") for picture in pictures]
    trained = adapter.collate([pair] if isinstance(adapter, BlipStatements) else single)
    adapter.save(tmp_path / "slim")
    slim = AutoProcessor.from_pretrained(tmp_path / "slim").image_processor
    for result in (
        trained.pixel_values.numpy(),
        slim(pictures, return_tensors="np")["pixel_values"],
        preprocess(pictures, read_image_processing(dense)),
        preprocess(pictures, read_image_processing(tmp_path / "slim")),
    ):
        np.testing.assert_array_equal(result, expected["pixel_values"])


def test_processors_are_refused_before_the_weights_are_read(checkpoint, tmp_path, no_weights):
    dense, fields = checkpoint
    copied = shutil.copytree(dense, tmp_path / "copy")
    for changes, words in (
        ({"do_flip": True}, "do_flip of"),
        ({"size": 20, "crop_size": 20}, "20x20 pixels .* image tower takes"),
        ({"size": {"shortest_edge": 200}, "do_center_crop": False, "do_pad": False}, "that differ"),
    ):
        (copied / NAMED).write_text(json.dumps(fields | changes))
        with pytest.raises(CompExportError, match=words):
            load_adapter(copied)
        with pytest.raises(CompExportError, match=words):
            export_artifact(copied, tmp_path / "onnx", Origin("tiny"))
    (copied / NAMED).unlink()
    with pytest.raises(CompExportError, match=f"no image processor: add {NAMED}"):
        load_adapter(copied)
    (copied / NAMED).write_text(json.dumps(fields))
    with pytest.raises(CompExportError, match="the weights are read"):
        load_adapter(copied)
