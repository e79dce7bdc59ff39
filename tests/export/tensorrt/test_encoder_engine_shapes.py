"""Shapes of the engines of CLIP and BLIP: every request within the limits, of every task."""

from fractions import Fraction
from math import ceil

import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comp.errors import CompExportError
from comp.plan import DropPlan
from export.artifact.encoder_ports import encoder_inputs
from export.artifact.load import read_manifest
from export.exporter import Origin, export_artifact
from export.graph.builder import Target
from export.tensorrt.build.encoder_profiles import engine_graphs, usual_limits, within
from export.tensorrt.limits import Limits
from serve.backends.onnxruntime.provider_shapes import LIMITS, profile_options
from tests.comp import small_blip, small_clip
from tests.export.manifests import ENCODER_GRAPHS, encoder_manifest

TASKS = tuple(ENCODER_GRAPHS)
ratios = st.integers(50, 1000).map(lambda thousandths: thousandths / 1000)


@st.composite
def drops(draw):
    return tuple(
        DropPlan(
            part=part,
            after_layer=layer,
            vision_keep_ratio=draw(ratios) if part == "vision" else 1.0,
            text_keep_ratio=draw(ratios) if part == "language" else 1.0,
        )
        for part in ("vision", "language")
        for layer in draw(st.sets(st.integers(1, 2)))
    )


limits_of_any_size = st.builds(
    Limits,
    max_batch=st.integers(1, 6),
    images=st.integers(1, 3),
    max_prompt=st.integers(1, 90),
    max_new_tokens=st.integers(1, 90),
)
manifests = st.builds(
    encoder_manifest,
    task=st.sampled_from(TASKS),
    drops=drops(),
    positions=st.integers(4, 80),
    tokens=st.integers(2, 40),
)


def left(count, manifest, part):
    """Counted place by place with exact fractions."""
    for drop in sorted(manifest.drops, key=lambda drop: drop.after_layer):
        if drop.part == part:
            ratio = drop.vision_keep_ratio if part == "vision" else drop.text_keep_ratio
            count = ceil(count * Fraction(round(ratio * 1000), 1000))
    return count


def takes(graph, manifest, **sizes):
    """Return the phases of a graph that accept every input at these sizes of named dimensions."""
    named = encoder_inputs(manifest)[graph.name]

    def fits(profile, dims):
        shape = [sizes[dim] if isinstance(dim, str) else dim for dim in dims]
        low, _, high = profile.shapes(dims)
        return all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))

    return [
        profile.name
        for profile in graph.profiles
        if all(fits(profile, dims) for dims in named.values())
    ]


@given(manifest=manifests, limits=limits_of_any_size, data=st.data())
def test_every_request_within_the_limits_has_a_profile(manifest, limits, data):
    limits = within(manifest, limits)
    graphs = {graph.name: graph for graph in engine_graphs(manifest, limits)}
    assert tuple(graphs) == tuple(encoder_inputs(manifest))
    assert set(graphs) == set(ENCODER_GRAPHS[manifest.task])
    batch = data.draw(st.integers(1, limits.max_batch))
    images = batch * data.draw(st.integers(1, limits.images))
    assert takes(graphs["vision_model"], manifest, images=images)
    length = data.draw(st.integers(min(2, limits.max_prompt), limits.max_prompt))
    for name in ("text_encoder", "text_model", "itm_model"):
        if name in graphs:
            assert takes(graphs[name], manifest, texts=batch, length=length)
    if manifest.decoder is None:
        return
    positions = manifest.decoder.max_position_embeddings
    looked = {"batch": batch, "cross_tokens": left(length, manifest, "language")}
    assert takes(graphs["cross_kv"], manifest, **looked)
    decoder = graphs["decoder_model"]
    longest = min(limits.max_prompt, positions - 1) if manifest.task == "caption" else 1
    first = data.draw(st.integers(1, longest))
    assert "prefill" in takes(decoder, manifest, sequence=first, past=0, **looked)
    new = min(data.draw(st.integers(1, limits.max_new_tokens)), positions - first)
    if new > 1:  # the token that a prefill gives needs no step, nor does the last
        last = first + new - 2
        assert takes(decoder, manifest, sequence=1, past=first, **looked) == ["decode"]
        assert takes(decoder, manifest, sequence=1, past=last, **looked) == ["decode"]


@given(manifest=manifests, limits=limits_of_any_size)
def test_no_profile_exceeds_the_positions(manifest, limits):
    limits = within(manifest, limits)
    named = encoder_inputs(manifest)
    for graph in engine_graphs(manifest, limits):
        for profile in graph.profiles:
            high = {name: profile.shapes(dims)[2] for name, dims in named[graph.name].items()}
            if "input_ids" in high:
                past = high.get("past_key_values.0.key", (0, 0, 0))[2]
                room = manifest.text.max_position_embeddings
                assert high["input_ids"][1] + past <= room


def test_kept_image_tokens_are_a_fixed_number():
    """It is fixed in the graphs, so it is not a range."""
    cut = (DropPlan(part="vision", after_layer=1, vision_keep_ratio=0.5, text_keep_ratio=1),)
    manifest = encoder_manifest("retrieval", cut)
    assert encoder_inputs(manifest)["itm_model"]["encoder_hidden_states"] == ("texts", 9, 48)
    captions = encoder_inputs(encoder_manifest("caption", cut))
    assert captions["cross_kv"]["encoder_hidden_states"] == ("batch", 9, 48)
    assert captions["decoder_model"]["cross.1.key"] == ("batch", 3, 9, 16)
    assert captions["decoder_model"]["past_key_values.1.key"] == ("batch", 1, "past", 16)


@pytest.mark.parametrize("task", TASKS)
def test_default_limits_respect_the_positions(task):
    images = 2 if task == "statement" else 1
    few = usual_limits(encoder_manifest(task, positions=40))
    assert (few.images, few.max_prompt, few.max_new_tokens) == (images, 40, 40)
    many = usual_limits(encoder_manifest(task, positions=512))
    assert (many.images, many.max_prompt, many.max_new_tokens) == (images, 128, 128)


@pytest.mark.parametrize("task", TASKS)
def test_limits_beyond_the_positions_are_refused(task):
    manifest = encoder_manifest(task, positions=40)
    usual = usual_limits(manifest)
    with pytest.raises(CompExportError, match="--max-prompt 41: the model has 40 positions"):
        engine_graphs(manifest, usual.model_copy(update={"max_prompt": 41}))
    more = usual.model_copy(update={"max_new_tokens": 41})
    if manifest.decoder is None:
        assert engine_graphs(manifest, more)  # nothing is generated
    else:
        with pytest.raises(CompExportError, match="--max-new-tokens 41: the model has 40"):
            engine_graphs(manifest, more)


@pytest.mark.parametrize(("task", "images"), [("question", 2), ("caption", 3), ("statement", 1)])
def test_too_many_images_for_a_task_are_refused(task, images):
    manifest = encoder_manifest(task)
    with pytest.raises(CompExportError, match=f"--images {images}: a {task} is about"):
        engine_graphs(manifest, usual_limits(manifest).model_copy(update={"images": images}))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Of a kind an artifact of the standard flavour, cut."""
    made = {}

    def of(kind):
        if kind not in made:
            home = tmp_path_factory.mktemp(kind)
            if kind == "clip":
                model, plan = small_clip.random_clip(), small_clip.random_plan()
            else:
                model = small_blip.random_blip(kind)
                plan = small_blip.random_plan(model)
            model.save(home / "dense")
            target = Target("standard", "float32")
            export_artifact(home / "dense", home / "onnx", Origin.of_plan(plan), target, plan)
            made[kind] = home / "onnx"
        return made[kind]

    return of


@pytest.mark.parametrize("kind", ["clip", *TASKS])
def test_inputs_equal_those_of_the_graphs(exported, kind):
    result = encoder_inputs(read_manifest(exported(kind)))
    assert {f"{name}.onnx" for name in result} == {p.name for p in exported(kind).glob("*.onnx")}
    for name, dims in result.items():
        model = onnx.load(exported(kind) / f"{name}.onnx", load_external_data=False)
        assert dims == {
            value.name: tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)
            for value in model.graph.input
        }


@pytest.mark.parametrize("kind", ["clip", *TASKS])
def test_the_tensorrt_provider_gets_every_input(exported, kind):
    """Sizes that fit the graph as ONNX Runtime sees it, up to the model's positions."""
    manifest = read_manifest(exported(kind))
    for name in encoder_inputs(manifest):
        options = profile_options(manifest, f"{name}.onnx", "nv_profile")
        low, usual, high = (
            {
                part.split(":")[0]: [int(n) for n in part.split(":")[1].split("x")]
                for part in options[f"nv_profile_{which}_shapes"].split(",")
            }
            for which in ("min", "opt", "max")
        )
        session = ort.InferenceSession(str(exported(kind) / f"{name}.onnx"))
        ports = {port.name: port.shape for port in session.get_inputs()}
        assert low.keys() == usual.keys() == high.keys() == ports.keys()
        for port, shape in ports.items():
            for place, dim in enumerate(shape):
                result = [each[port][place] for each in (low, usual, high)]
                assert result == sorted(result)
                assert not isinstance(dim, int) or set(result) == {dim}
                assert dim not in ("images", "texts", "batch") or result[2] >= LIMITS.max_batch
        if name == "decoder_model":
            assert low["past_key_values.0.key"][2] == 0
            assert high["past_key_values.0.key"][2] == manifest.decoder.max_position_embeddings - 2
