"""TensorRT for RTX builds engines of BLIP's graphs on the CPU."""

import pytest

from export.families.blip.graphs import build_blip_graphs
from export.graph.builder import Target
from export.tensorrt.build.engine import BuildOptions, build_engine
from export.tensorrt.build.profiles import EngineGraph, Profile, Range
from export.tensorrt.library import find_tensorrt
from export.weights.checkpoint import CheckpointWeights
from tests.export.shapes import read_blip
from tests.export.small_blip import (
    HEADS,
    LAYERS,
    POSITIONS,
    TASKS,
    random_blip,
    random_plan,
    save_blip,
)

pytest.importorskip("tensorrt_rtx")
pytestmark = [
    pytest.mark.slow,
    # A warning of TensorRT's own, for every Python class derived from one of its classes.
    pytest.mark.filterwarnings("ignore:Use del obj instead:DeprecationWarning"),
]
BATCH = Range(1, 1, 4)
SIZES = {
    "images": BATCH,
    "texts": BATCH,
    "batch": BATCH,
    "length": Range(1, 8, POSITIONS),
    "cross_tokens": Range(1, 8, POSITIONS),
}
ONCE = (Profile("run", SIZES),)
# A step's profile goes up to two tokens: TensorRT-RTX 1.7 finds no fused attention for the constant 1.
PHASES = (
    Profile("prefill", SIZES | {"sequence": Range(1, 4, POSITIONS), "past": Range(0, 0, 0)}),
    Profile("decode", SIZES | {"sequence": Range(1, 1, 2), "past": Range(1, 4, POSITIONS)}),
)


@pytest.mark.parametrize(("precision", "kept"), [("float16", "some"), ("float32", "all")])
@pytest.mark.parametrize("task", TASKS)
def test_every_graph_is_built(task, precision, kept, tmp_path):
    """Blocks of one head and of several; tokens dropped in every block of both encoders."""
    plan = random_plan(task, 0) if kept == "some" else random_plan(task, 0, heads_from=HEADS)
    checkpoint = save_blip(task, random_blip(task), tmp_path / "model", plan)
    (tmp_path / "onnx").mkdir()
    shape, names = read_blip(checkpoint), []
    weights = CheckpointWeights(checkpoint, naming=str)
    target = Target("standard", precision)
    build_blip_graphs(shape, weights, target, tmp_path / "onnx", names.append)
    tensorrt, options = find_tensorrt("tensorrt_rtx"), BuildOptions(("8.9",))
    for name in names:
        profiles = PHASES if name == "decoder_model.onnx" else ONCE
        graph = EngineGraph(name.removesuffix(".onnx"), name, profiles)
        built = build_engine(tensorrt, tmp_path / "onnx", graph, options)
        assert len(bytes(built.data)) > 1000
        assert set(built.profiles) == {profile.name for profile in profiles}
        blocks = [f"layers.{n}" for n in range(LAYERS)]
        looks = {"question": ("/cross",), "caption": ("/cross",), "retrieval": ("/cross",)}
        looks["statement"] = ("/cross0", "/cross1")
        alone = name in ("vision_model.onnx", "text_model.onnx")
        parts = ("", *(() if alone else looks[task]))
        expected = [] if name == "cross_kv.onnx" else [b + part for b in blocks for part in parts]
        assert [block.block for block in built.blocks] == expected
