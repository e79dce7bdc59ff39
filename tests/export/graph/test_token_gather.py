"""The token gather on its own, over all shapes: k in integers, order, kinds, decode steps."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comp.plan import DropPlan, keep_count
from export.graph.builder import GraphBuilder, Target
from export.graph.token_gather import KEEP_FACTOR, Tokens, drop_tokens, gather_rows

INT64, FLOAT = ir.DataType.INT64, ir.DataType.FLOAT


def gather_session(tmp_path, drops, flavour="onnxruntime"):
    """Two drops after another: scores of the whole sequence, gathered as the tokens are."""
    graph = GraphBuilder("gather", Target(flavour))
    tokens = Tokens(
        graph.input("position_ids", INT64, ("b", "n")),
        graph.input("vision", INT64, ("b", "nv")),
        graph.input("text", INT64, ("b", "nt")),
    )
    scores = graph.input("scores", FLOAT, ("b", "n"))
    factor = graph.default_input(KEEP_FACTOR, np.array(1.0, np.float32))
    for number, drop in enumerate(drops):
        gathered = drop_tokens(graph, tokens, scores, drop, factor, number + 1 < len(drops))
        tokens = gathered.tokens
        rows = gather_rows(graph, graph.op("Unsqueeze", scores, graph.constant([2])), gathered.keep)
        scores = graph.op("Squeeze", rows, graph.constant([2]))
        graph.output(f"kept.{number}", tokens.original, INT64, ("b", f"k{number}"))
        graph.output(f"positions.{number}", tokens.position_ids, INT64, ("b", f"k{number}"))
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.onnx"
    graph.save(path)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def expected_kept(scores, is_vision, drops, factor=1.0):
    """One row, in plain numpy."""
    places = np.arange(len(scores))
    scores = scores.copy()
    scores[-1] += 2
    result = []
    for drop in drops:
        keep = []
        for mine, ratio in (
            (is_vision[places], drop.vision_keep_ratio),
            (~is_vision[places], drop.text_keep_ratio),
        ):
            thousandths = min(
                1000, max(1, round(float(np.float32(round(ratio * 1000)) * np.float32(factor))))
            )
            group = places[mine]
            k = keep_count(len(group), thousandths / 1000)
            keep += group[np.argsort(-scores[group], kind="stable")[:k]].tolist()
        places = np.array(sorted(keep), dtype=np.int64)
        result.append(places)
    return result


ratios = st.integers(1, 1000).map(lambda thousandths: thousandths / 1000)
drop_lists = st.lists(st.tuples(ratios, ratios), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    drops=drop_lists,
    vision=st.integers(0, 40),
    text=st.integers(1, 20),
    batch=st.integers(1, 3),
    seed=st.integers(0, 2**16),
    factor=st.sampled_from([1.0, 0.5, 0.333, 1.7, 1e-6]),
    ties=st.booleans(),
)
def test_gather_equals_brute_force(
    tmp_path_factory, drops, vision, text, batch, seed, factor, ties
):
    plans = [
        DropPlan(after_layer=number + 1, vision_keep_ratio=v, text_keep_ratio=t)
        for number, (v, t) in enumerate(drops)
    ]
    session = gather_session(tmp_path_factory.mktemp("gather"), plans)
    rng = np.random.default_rng(seed)
    length = vision + text
    kinds = np.zeros((batch, length), dtype=bool)
    for row in kinds:
        row[rng.permutation(length - 1)[:vision]] = True
    scores = rng.random((batch, length)).astype(np.float32)
    if ties:
        scores = np.round(scores, 1)
    feeds = {
        "position_ids": np.tile(np.arange(length) + 7, (batch, 1)),
        "vision": np.stack([np.flatnonzero(row) for row in kinds]).reshape(batch, vision),
        "text": np.stack([np.flatnonzero(~row) for row in kinds]).reshape(batch, text),
        "scores": scores,
        KEEP_FACTOR: np.array(factor, np.float32),
    }
    names = [output.name for output in session.get_outputs()]
    result = dict(zip(names, session.run(names, feeds), strict=True))
    for row in range(batch):
        for number, places in enumerate(expected_kept(scores[row], kinds[row], plans, factor)):
            assert result[f"kept.{number}"][row].tolist() == places.tolist()
            assert result[f"positions.{number}"][row].tolist() == (places + 7).tolist()
            assert places[-1] == length - 1  # the last token always stays


@pytest.mark.parametrize("flavour", ["onnxruntime", "standard"])
def test_a_decode_step_keeps_its_token(tmp_path, flavour):
    drops = [
        DropPlan(after_layer=m, vision_keep_ratio=0.001, text_keep_ratio=0.001) for m in (1, 2)
    ]
    session = gather_session(tmp_path, drops, flavour)
    feeds = {
        "position_ids": np.array([[99], [99]]),
        "vision": np.zeros((2, 0), np.int64),
        "text": np.zeros((2, 1), np.int64),
        "scores": np.zeros((2, 1), np.float32),
    }
    kept, positions = session.run(["kept.1", "positions.1"], feeds)
    assert kept.tolist() == [[0], [0]]
    assert positions.tolist() == [[99], [99]]
