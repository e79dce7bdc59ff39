"""Shapes of engines: exactly the requests within the limits fit."""

import math
import re
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from comp.errors import CompExportError
from comp.plan import DropPlan
from export.artifact.caches import cached_tokens, segments_of
from export.tensorrt.build.llava_profiles import cache_capacities, engine_graphs
from export.tensorrt.build.profiles import Profile, Range
from export.tensorrt.limits import Limits
from tests.export.manifests import artifact_manifest

LAYERS = 6
HEADS, HEAD_DIM, WIDTH = 2, 16, 64

ratios = st.integers(1, 1000).map(lambda thousandths: thousandths / 1000)


@st.composite
def drop_places(draw):
    """Draw up to three places, ascending, none after the last block."""
    places = draw(st.sets(st.integers(1, LAYERS - 1), max_size=3))
    return tuple(
        DropPlan(after_layer=place, vision_keep_ratio=draw(ratios), text_keep_ratio=draw(ratios))
        for place in sorted(places)
    )


limits_of_any_size = st.builds(
    Limits,
    max_batch=st.integers(1, 8),
    images=st.integers(1, 4),
    max_prompt=st.integers(1, 200),
    max_new_tokens=st.integers(1, 200),
)
manifests = st.builds(
    artifact_manifest,
    drops=drop_places(),
    image_tokens=st.integers(1, 600),
    layers=st.just(LAYERS),
)


def decoder_inputs(manifest):
    """Dimensions of the decoder's inputs, as the graph names them."""
    segments = segments_of(manifest.decoder)
    caches = {
        f"past_key_values.{layer}.{kind}": ("batch", HEADS, f"capacity_{segment}", HEAD_DIM)
        for layer, segment in enumerate(segments)
        for kind in ("key", "value")
    }
    return {
        "inputs_embeds": ("batch", "sequence", WIDTH),
        "position_ids": ("batch", "sequence"),
        "vision_positions": ("batch", "vision_tokens"),
        "text_positions": ("batch", "text_tokens"),
        "cache_lengths": (len(manifest.decoder.drops) + 1, "batch"),
        **caches,
    }


def inputs_of(graph, manifest):
    """Dimensions of a graph's inputs, the fixed ones as numbers."""
    named = {
        "vision_encoder": {"pixel_values": ("images", 3, 56, 56)},
        "embed_tokens": {"input_ids": ("batch", "sequence")},
        "decoder": decoder_inputs(manifest),
    }[graph.name]
    return {name: tuple(graph.fixed.get(dim, dim) for dim in dims) for name, dims in named.items()}


def sized(dims, sizes):
    return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in dims)


def fits(shape, shapes):
    low, _, high = shapes
    return all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))


def takes(profile, inputs, sizes):
    """Whether a profile takes every input at these sizes."""
    return all(fits(sized(dims, sizes), profile.shapes(dims)) for dims in inputs.values())


def prompt_sizes(manifest, batch, images, text):
    vision = images * manifest.vision.image_tokens
    return {
        "batch": batch,
        "images": batch * images,
        "sequence": vision + text,
        "vision_tokens": vision,
        "text_tokens": text,
    }


STEP = {"sequence": 1, "vision_tokens": 0, "text_tokens": 1}


@given(drops=drop_places(), layers=st.integers(LAYERS, 12))
def test_segments_change_after_each_drop_place(drops, layers):
    """Block by block, as the decoder is built."""
    places = {drop.after_layer for drop in drops}
    segment, expected = 0, []
    for number in range(layers):
        expected.append(segment)
        segment += number + 1 in places
    assert list(segments_of(artifact_manifest(drops, layers=layers).decoder)) == expected


@given(drops=drop_places(), vision=st.integers(0, 700), text=st.integers(1, 200))
def test_cached_tokens_equal_the_exact_count(drops, vision, text):
    """Counted token by token with exact fractions; the last text token is never lost."""
    present = ["vision"] * vision + ["text"] * text
    counts = [len(present)]
    for drop in drops:
        for kind, ratio in (("vision", drop.vision_keep_ratio), ("text", drop.text_keep_ratio)):
            exact = Fraction(round(ratio * 1000), 1000)
            gone = present.count(kind) - math.ceil(exact * present.count(kind))
            for _ in range(gone):
                present.remove(kind)
        counts.append(len(present))
        assert "text" in present
    decoder = artifact_manifest(drops, layers=LAYERS).decoder
    assert cached_tokens(decoder, vision, text) == tuple(counts)
    assert cached_tokens(decoder, 0, 1) == (1,) * len(counts)


@given(manifest=manifests, limits=limits_of_any_size)
def test_shapes_ascend_and_are_consistent(manifest, limits):
    """Smallest, usual and largest are prompts themselves: vision and text are the sequence."""
    for graph in engine_graphs(manifest, limits):
        for profile in graph.profiles:
            for dims in inputs_of(graph, manifest).values():
                low, usual, high = profile.shapes(dims)
                assert len(low) == len(usual) == len(high) == len(dims)
                assert all(a <= b <= c for a, b, c in zip(low, usual, high, strict=True))
    for profile in graph.profiles:  # of the decoder, the last graph
        for place in range(3):
            vision, text, sequence = (
                profile.shapes((name,))[place][0]
                for name in ("vision_tokens", "text_tokens", "sequence")
            )
            assert vision + text == sequence


@given(manifest=manifests, limits=limits_of_any_size, data=st.data())
def test_every_request_within_the_limits_fits(manifest, limits, data):
    batch = data.draw(st.integers(1, limits.max_batch))
    images = data.draw(st.integers(0, limits.images))
    text = data.draw(st.integers(1, limits.max_prompt))
    limits.check(batch, images, text, limits.max_new_tokens)
    sizes = prompt_sizes(manifest, batch, images, text)
    vision, embed, decoder = engine_graphs(manifest, limits)
    prefill, decode = decoder.profiles
    assert (prefill.name, decode.name) == ("prefill", "decode")
    if images:
        assert takes(vision.profiles[0], inputs_of(vision, manifest), sizes)
    inputs = inputs_of(decoder, manifest)
    assert takes(prefill, inputs, sizes)
    assert takes(decode, inputs, sizes | STEP)
    for step in ({}, STEP):
        assert takes(embed.profiles[0], inputs_of(embed, manifest), sizes | step)


@given(manifest=manifests, limits=limits_of_any_size)
def test_no_larger_request_fits(manifest, limits):
    """Larger engines cost memory: the limits are met exactly."""
    largest = {"batch": limits.max_batch, "images": limits.images, "text": limits.max_prompt}
    vision, _, decoder = engine_graphs(manifest, limits)
    prefill, decode = decoder.profiles
    inputs = inputs_of(decoder, manifest)
    assert takes(prefill, inputs, prompt_sizes(manifest, **largest))
    for name in largest:
        sizes = prompt_sizes(manifest, **(largest | {name: largest[name] + 1}))
        assert not takes(prefill, inputs, sizes)
        if name != "text":
            assert not takes(vision.profiles[0], inputs_of(vision, manifest), sizes)
    assert not takes(decode, inputs, prompt_sizes(manifest, 1, 1, 1))


@given(manifest=manifests, limits=limits_of_any_size, data=st.data())
def test_caches_hold_every_prompt_and_its_answer(manifest, limits, data):
    images = data.draw(st.integers(0, limits.images))
    text = data.draw(st.integers(1, limits.max_prompt))
    capacities = cache_capacities(manifest, limits)
    assert len(capacities) == len(manifest.decoder.drops) + 1
    filled = cached_tokens(manifest.decoder, images * manifest.vision.image_tokens, text)
    largest = cached_tokens(
        manifest.decoder, limits.images * manifest.vision.image_tokens, limits.max_prompt
    )
    for capacity, count, most in zip(capacities, filled, largest, strict=True):
        assert count + limits.max_new_tokens <= capacity
        assert capacity % 8 == 0
        assert capacity - (most + limits.max_new_tokens) < 8
    fixed = engine_graphs(manifest, limits)[-1].fixed
    assert fixed == {f"capacity_{number}": places for number, places in enumerate(capacities)}


@given(low=st.integers(-3, 9), usual=st.integers(-3, 9), high=st.integers(-3, 9))
def test_a_range_refuses_descending_sizes(low, usual, high):
    if [low, usual, high] == sorted([low, usual, high]) and low >= 0:
        assert Range(low, usual, high).high == high
        return
    with pytest.raises(ValueError, match=f"{low}, {usual}, {high} are not ascending"):
        Range(low, usual, high)


LIMITS = Limits(max_batch=2, images=3, max_prompt=40, max_new_tokens=50)
LARGEST = {"batch": 2, "images": 3, "text_tokens": 40, "new_tokens": 50}
OPTIONS = {
    "batch": "--max-batch",
    "images": "--images",
    "text_tokens": "--max-prompt",
    "new_tokens": "--max-new-tokens",
}


@pytest.mark.parametrize("name", OPTIONS)
def test_limits_name_what_a_request_exceeds(name):
    LIMITS.check(**LARGEST)
    LIMITS.check(batch=1, images=0, text_tokens=1, new_tokens=1)
    requested = LARGEST[name] + 7
    with pytest.raises(CompExportError) as caught:
        LIMITS.check(**(LARGEST | {name: requested}))
    message = str(caught.value)
    option = OPTIONS[name]
    assert f"{option} {LARGEST[name]}, this request has {requested}" in message
    assert message.endswith(f"`comp-export tensorrt --force {option} {requested}`")
    for other in set(OPTIONS.values()) - {option}:
        assert other not in message


@pytest.mark.parametrize("name", ["max_batch", "images", "max_prompt", "max_new_tokens"])
def test_limits_are_at_least_one(name):
    with pytest.raises(ValidationError, match=name):
        Limits(**{name: 0})


@given(manifest=manifests, limits=limits_of_any_size)
def test_more_tokens_than_positions_are_refused(manifest, limits):
    tokens = limits.images * manifest.vision.image_tokens
    needed = tokens + limits.max_prompt + limits.max_new_tokens

    def with_positions(count):
        decoder = manifest.decoder.model_copy(update={"max_position_embeddings": count})
        return manifest.model_copy(update={"decoder": decoder})

    assert engine_graphs(with_positions(needed), limits)
    with pytest.raises(CompExportError, match=f"the model has {needed - 1} positions") as caught:
        engine_graphs(with_positions(needed - 1), limits)
    for words in (
        f"--images {limits.images} ({tokens} tokens)",
        f"--max-prompt {limits.max_prompt} ",
        f"--max-new-tokens {limits.max_new_tokens} ",
        f"are {needed} tokens",
    ):
        assert words in str(caught.value)


def test_more_kept_tokens_than_tensorrt_sorts_are_refused():
    """Of 4000 image tokens and 200 of text: without a drop nothing is sorted."""
    limits = Limits(max_prompt=200)

    def with_ratio(*ratios):
        drops = tuple(
            DropPlan(after_layer=place + 1, vision_keep_ratio=ratio, text_keep_ratio=1)
            for place, ratio in enumerate(ratios)
        )
        return artifact_manifest(drops, image_tokens=4000, positions=10_000)

    for ratios in ((), (0.91,), (0.9, 0.9)):
        assert engine_graphs(with_ratio(*ratios), limits)
    with pytest.raises(CompExportError, match="keep 3844 tokens at a drop") as caught:
        engine_graphs(with_ratio(0.911, 0.5), limits)
    for words in ("--images 1 ", "--max-prompt 200 ", "at most 3840"):
        assert words in str(caught.value)


@given(manifest=manifests, limits=limits_of_any_size)
def test_a_step_length_is_not_constant_after_any_drop(manifest, limits):
    """TensorRT-RTX has no fused attention of few heads for the constant 1 of queries."""
    assume(all(drop.text_keep_ratio >= 0.1 for drop in manifest.decoder.drops))
    _, decode = engine_graphs(manifest, limits)[-1].profiles
    low, usual, high = (shape[0] for shape in decode.shapes(("text_tokens",)))
    assert (low, usual) == (1, 1)
    assert min(cached_tokens(manifest.decoder, 0, high)) > 1


def test_a_dimension_without_sizes_is_refused():
    profile = Profile("prefill", {"batch": Range(1, 1, 2)})
    assert profile.shapes(("batch", 7)) == ((1, 7), (1, 7), (2, 7))
    with pytest.raises(CompExportError, match=re.escape("no size for the dimension 'width'")):
        profile.shapes(("batch", "width"))
