"""Engines of the real architecture: LLaVA-1.5-7B at full width, two blocks of each part, fewer words."""

import shutil

import pytest
import torch

from comp.plan import BlockPlan, DropPlan, PruningPlan, Workload
from export.artifact.load import read_manifest
from export.exporter import Origin, export_artifact
from export.graph.builder import Target
from export.tensorrt.build.engine import BuildOptions, build_engine
from export.tensorrt.build.llava_profiles import cache_capacities, engine_graphs
from export.tensorrt.library import find_tensorrt
from export.tensorrt.limits import Limits
from tests.full_width import CHANNELS, HEADS, HIDDEN, save_full_width

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.slow

KEPT = ((24, 6400), (17, 5504))  # kept heads and channels of each decoder block
DROP = DropPlan(after_layer=1, vision_keep_ratio=0.25, text_keep_ratio=0.9)
LIMITS = Limits(max_prompt=128, max_new_tokens=128)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder of gigabytes, removed after the tests."""
    directory = tmp_path_factory.mktemp("engine-full-width")
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def checkpoint(home):
    return save_full_width(home / "llava", 2, -1, words=8064)


def full_width_plan():
    generator = torch.Generator().manual_seed(0)

    def some(count, of):
        return tuple(sorted(torch.randperm(of, generator=generator)[:count].tolist()))

    return PruningPlan(
        family="llava",
        model="full width",
        method="comp",
        rate=0.5,
        workload=Workload(image_tokens=576, text_tokens=64),
        macs_dense=200,
        macs=100,
        blocks=tuple(
            BlockPlan(
                part="language",
                index=index,
                num_attention_heads=HEADS,
                num_key_value_heads=HEADS,
                intermediate_size=CHANNELS,
                kept_key_value_heads=some(heads, HEADS),
                kept_channels=some(channels, CHANNELS),
            )
            for index, (heads, channels) in enumerate(KEPT)
        ),
        drops=(DROP,),
    )


@pytest.mark.parametrize("pruned", [False, True], ids=["dense", "pruned"])
def test_full_width_attention_is_fused_and_written_in_place(pruned, checkpoint, home):
    plan = full_width_plan() if pruned else None
    source = home / "onnx"
    origin = Origin.of_plan(plan) if plan else Origin("full width")
    export_artifact(checkpoint, source, origin, Target("standard", "float16"), plan)
    manifest = read_manifest(source)
    vision, _, decoder = engine_graphs(manifest, LIMITS)
    # 576 image tokens, 128 of a prompt, 128 new: 832; behind the drop 144 + 116 + 128, up to eights.
    assert cache_capacities(manifest, LIMITS) == ((832, 392) if pruned else (832,))
    tensorrt, options = find_tensorrt("tensorrt_rtx"), BuildOptions(("8.9",))
    built = build_engine(tensorrt, source, decoder, options)
    assert [(b.block, b.attention, b.caches_in_place) for b in built.blocks] == [
        ("layers.0", "fused", 2),
        ("layers.1", "fused", 2),
    ]
    weights = source / "decoder_model.onnx.data"
    assert built.data.nbytes >= weights.stat().st_size
    prefill = built.profiles["prefill"]
    heads = [count for count, _ in KEPT] if pruned else [HEADS] * 2
    places = (832, 392) if pruned else (832, 832)
    for layer in range(2):
        assert prefill[f"past_key_values.{layer}.key"][2] == (1, heads[layer], places[layer], 128)
    assert prefill["inputs_embeds"][2] == (1, 704, HIDDEN)
    del built
    tower = build_engine(tensorrt, source, vision, options)
    assert [b.attention for b in tower.blocks] == ["fused"] * 2
    assert tower.profiles["prefill"]["pixel_values"][2] == (1, 3, 336, 336)
