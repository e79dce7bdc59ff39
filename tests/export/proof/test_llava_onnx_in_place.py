"""The decoder that TensorRT compiles, run by ONNX Runtime: its caches are written in place."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.external_data_helper import uses_external_data
from packaging.version import Version

from comp.errors import CompExportError
from export.artifact.caches import segments_of
from export.artifact.load import load_artifact
from export.exporter import Origin, export_artifact
from export.graph.builder import INLINE_BYTES, Target
from export.proof.llava_onnx import OnnxRunner, OnnxState
from export.proof.llava_onnx_in_place import InPlaceRunner
from tests.export.reference import MaskedReference, generated
from tests.export.tiny import make_plan, prompt, save_checkpoint, tiny_config, tiny_model

OLDEST = "1.24"
runs_in_place = pytest.mark.skipif(
    Version(onnxruntime.__version__) < Version(OLDEST),
    reason=f"TensorScatter (opset 24) came with onnxruntime {OLDEST}",
)

BOUND = {"float32": 1e-3, "float16": 0.15}  # logits of these models are of the order of 3
PROMPTS = ((5, 1, 1), (13, 2, 2), (6, 0, 2), (1, 1, 1))  # texts, images, batch
STEPS = 4
ROOM = 6


@pytest.fixture(scope="module")
def artifact(request, tmp_path_factory):
    """An artifact of one of the tiny models; each is exported once."""
    home, made = tmp_path_factory.mktemp("in-place"), {}

    def export(name, precision="float32", pruned=True, flavour="standard"):
        key = (name, precision, pruned, flavour)
        if key not in made:
            model, checkpoint = request.getfixturevalue(name)
            plan = plan_of(model) if pruned else None
            origin = Origin.of_plan(plan) if plan else Origin("tiny")
            made[key] = home / "-".join(map(str, key))
            export_artifact(checkpoint, made[key], origin, Target(flavour, precision), plan)
        return made[key]

    return export


def plan_of(model):
    return make_plan(model.config, seed=3)


def continued(runner, pixels, ids, tokens):
    """Logits of a prefill and of steps with these tokens, and what was kept."""
    logits, kept, state = runner.prefill(pixels, ids)
    result = [logits]
    for token in tokens:
        logits, state = runner.step(token, state)
        result.append(logits)
    return np.stack(result), kept, state


def greedy_tokens(runner, pixels, ids):
    logits, _, state = runner.prefill(pixels, ids)
    tokens = []
    for _ in range(STEPS):
        tokens.append(logits.argmax(-1))
        logits, state = runner.step(tokens[-1], state)
    return tokens


@runs_in_place
@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("name", ["gqa", "mha"])
def test_in_place_equals_growing_caches(name, pruned, precision, artifact):
    """Both flavours' decoders, whose caches are as long as what is in them."""
    directory = artifact(name, precision, pruned)
    result = InPlaceRunner(directory, ROOM)
    others = [
        OnnxRunner(directory, threads=1),
        OnnxRunner(artifact(name, precision, pruned, "onnxruntime"), threads=1),
    ]
    for texts, images, batch in PROMPTS:
        pixels, ids = prompt(texts, images, seed=texts, batch=batch)
        tokens = greedy_tokens(others[0], pixels, ids)
        logits, kept, state = continued(result, pixels, ids, tokens)
        for other in others:
            expected, expected_kept, grown = continued(other, pixels, ids, tokens)
            assert np.abs(logits - expected).max() <= BOUND[precision]
            assert len(kept) == len(expected_kept) == (2 if pruned else 0)
            for mine, theirs in zip(kept, expected_kept, strict=True):
                assert np.array_equal(mine, theirs)
            assert state.position == grown.position == ids.shape[1] + STEPS
        segments = segments_of(result.artifact.manifest.decoder)
        for layer, segment in enumerate(segments):
            for kind in ("key", "value"):
                cache = f"past_key_values.{layer}.{kind}"
                assert state.caches[cache].dtype == precision
                # The grown cache of the standard flavour is the front of the buffer.
                length = grown.caches[cache].shape[2]
                assert (
                    state.filled[segment] == length == state.caches[cache].shape[2] - (ROOM - STEPS)
                )
                difference = state.caches[cache][:, :, :length] - grown.caches[cache]
                assert np.abs(difference).max() <= BOUND[precision]


@runs_in_place
@pytest.mark.parametrize("name", ["gqa", "mha"])
def test_in_place_equals_the_masked_reference(name, request, artifact):
    model, _ = request.getfixturevalue(name)
    result = InPlaceRunner(artifact(name), ROOM)
    for texts, images, batch in PROMPTS:
        pixels, ids = prompt(texts, images, seed=texts, batch=batch)
        logits, kept, state = result.prefill(pixels, ids)
        rows = [MaskedReference(model, plan_of(model)) for _ in range(batch)]
        expected = []
        for row, one in enumerate(rows):
            mine = torch.tensor(pixels[row * images : (row + 1) * images]) if images else None
            row_logits, row_kept = one.prefill(mine, torch.tensor(ids[row : row + 1]))
            assert [place[row].tolist() for place in kept] == row_kept
            expected.append(row_logits.numpy())
        assert np.abs(logits - np.stack(expected)).max() <= BOUND["float32"]
        for _ in range(STEPS):
            token = np.stack(expected).argmax(-1)
            assert (logits.argmax(-1) == token).all()
            logits, state = result.step(token, state)
            expected = [one.step(int(t)).numpy() for one, t in zip(rows, token, strict=True)]
            assert np.abs(logits - np.stack(expected)).max() <= BOUND["float32"]
    pixels, ids = prompt(9, seed=9)
    assert generated(result, pixels, ids, ROOM) == MaskedReference(model, plan_of(model)).generate(
        torch.tensor(pixels), torch.tensor(ids), ROOM, eos=(2,)
    )


@runs_in_place
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_blocks_of_one_head_equal_the_reference(precision, tmp_path):
    """Each block keeps another number of heads, down to a single one."""
    model = tiny_model(tiny_config(kv_heads=4, layers=4), seed=5)
    checkpoint = save_checkpoint(model, tmp_path / "model")
    plan = make_plan(model.config, ((2, 0.5, 0.5),))
    blocks = tuple(
        block.model_copy(update={"kept_key_value_heads": kept})
        for block, kept in zip(plan.blocks, ((2,), (0, 1, 3), (1,), (0, 3)), strict=True)
    )
    plan = plan.model_copy(update={"blocks": blocks})
    export_artifact(
        checkpoint, tmp_path / "onnx", Origin.of_plan(plan), Target("standard", precision), plan
    )
    result = InPlaceRunner(tmp_path / "onnx", ROOM)
    assert result.artifact.manifest.decoder.num_attention_heads == (1, 3, 1, 2)
    pixels, ids = prompt(9, seed=1)
    reference = MaskedReference(model, plan)
    expected, expected_kept = reference.prefill(torch.tensor(pixels), torch.tensor(ids))
    logits, kept, state = result.prefill(pixels, ids)
    assert [place[0].tolist() for place in kept] == expected_kept
    for _ in range(STEPS):
        assert np.abs(logits[0] - expected.numpy()).max() <= BOUND[precision]
        token = int(expected.argmax())
        logits, state = result.step(np.array([token]), state)
        expected = reference.step(token)
    assert np.abs(logits[0] - expected.numpy()).max() <= BOUND[precision]


class Reused(InPlaceRunner):
    """Starts every prompt on the buffers it is given, as an engine does."""

    buffers: dict[str, np.ndarray]

    def _empty_caches(self, batch, vision, text):
        fresh = super()._empty_caches(batch, vision, text)
        assert {n: c.shape for n, c in fresh.items()} == {
            n: c.shape for n, c in self.buffers.items()
        }
        return {name: buffer.copy() for name, buffer in self.buffers.items()}


@runs_in_place
@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("pruned", [False, True])
def test_old_contents_of_the_caches_are_ignored(pruned, precision, artifact):
    """Old contents are another prompt's keys and values, or numbers a thousand times as large."""
    directory = artifact("gqa", precision, pruned)
    pixels, ids = prompt(7, seed=1, batch=2)
    tokens = greedy_tokens(InPlaceRunner(directory, ROOM), pixels, ids)
    expected, expected_kept, after = continued(InPlaceRunner(directory, ROOM), pixels, ids, tokens)
    reused = Reused(directory, ROOM)
    other_pixels, other_ids = prompt(7, seed=2, batch=2)
    reused.buffers = {n: np.zeros_like(c) for n, c in after.caches.items()}
    other = reused.prefill(other_pixels, other_ids)[2].caches
    assert all(np.any(cache) for cache in other.values())
    loud = {n: np.full_like(c, 1e3) for n, c in after.caches.items()}
    for left in (other, loud, {n: -c for n, c in loud.items()}):
        reused.buffers = left
        logits, kept, state = continued(reused, pixels, ids, tokens)
        assert np.array_equal(logits, expected)
        for mine, theirs in zip(kept, expected_kept, strict=True):
            assert np.array_equal(mine, theirs)
        assert state.filled == after.filled
    assert np.all(state.caches["past_key_values.0.key"][:, :, state.filled[0] :] == -1e3)


@runs_in_place
def test_a_full_cache_is_refused(artifact):
    runner = InPlaceRunner(artifact("gqa"), room=2)
    pixels, ids = prompt(5)
    logits, _, state = runner.prefill(pixels, ids)
    for _ in range(2):
        logits, state = runner.step(logits.argmax(-1), state)
    with pytest.raises(CompExportError, match="room for 2 new tokens is used up"):
        runner.step(logits.argmax(-1), state)
    assert len(generated(runner, pixels, ids, 3)) <= 3  # the first token needs no place


@runs_in_place
def test_a_wrong_length_changes_the_answer(artifact):
    """With a length of one place fewer the decoder answers otherwise."""
    runner = InPlaceRunner(artifact("gqa"), ROOM)
    pixels, ids = prompt(7, seed=1)
    logits, _, state = runner.prefill(pixels, ids)
    token = logits.argmax(-1)
    right, _ = runner.step(token, state)
    short = OnnxState(state.caches, state.position, tuple(n - 1 for n in state.filled))
    assert np.abs(runner.step(token, short)[0] - right).max() > BOUND["float32"]


def test_the_onnxruntime_flavour_has_no_such_decoder(artifact):
    directory = artifact("gqa", flavour="onnxruntime")
    assert not load_artifact(directory).graph("decoder_in_place").exists()
    with pytest.raises(CompExportError, match="export with --flavour standard") as caught:
        InPlaceRunner(directory)
    assert f"{directory} is of the onnxruntime flavour" in str(caught.value)


@pytest.mark.parametrize("runner", [OnnxRunner, pytest.param(InPlaceRunner, marks=runs_in_place)])
def test_bfloat16_is_refused_with_what_runs(runner, artifact):
    with pytest.raises(CompExportError, match="export with --precision float16 or float32"):
        runner(artifact("gqa", "bfloat16"))


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("pruned", [False, True])
def test_weights_are_shared_with_the_growing_decoder(pruned, precision, artifact):
    directory = artifact("mha", precision, pruned)
    result = load_artifact(directory)
    assert not (directory / "decoder_in_place.onnx.data").exists()
    assert "decoder_in_place.onnx" in {entry.name for entry in result.manifest.files}
    stored, inline = {}, []
    for path in map(result.graph, ("decoder_model", "decoder_in_place")):
        tensors = onnx.load(path, load_external_data=False).graph.initializer
        stored[path.stem] = {
            tensor.name: {entry.key: entry.value for entry in tensor.external_data}
            for tensor in tensors
            if uses_external_data(tensor)
        }
        inline += [tensor.ByteSize() for tensor in tensors if not uses_external_data(tensor)]
    in_place = stored["decoder_in_place"]
    assert in_place == stored["decoder_model"]
    assert "lm_head.weight" in in_place
    assert {entry["location"] for entry in in_place.values()} == {"decoder_model.onnx.data"}
    assert max(inline) < 2 * INLINE_BYTES  # names and shapes included


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("pruned", [False, True])
def test_the_graph_in_place_is_standard_and_valid(pruned, precision, artifact):
    path = load_artifact(artifact("gqa", precision, pruned)).graph("decoder_in_place")
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert {node.domain for node in model.graph.node} == {""}
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 24)]
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("TensorScatter") == 2 * 4
    assert kinds.count("Attention") == (0 if precision == "float32" else 4)
    dims = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    shape = load_artifact(path.parent).manifest.decoder
    assert dims["cache_lengths"] == [len(shape.drops) + 1, "batch"]
    for layer, segment in enumerate(segments_of(shape)):
        for kind in ("key", "value"):
            past = dims[f"past_key_values.{layer}.{kind}"]
            assert past == [
                "batch", shape.num_key_value_heads[layer], f"capacity_{segment}", shape.head_dim,
            ]  # fmt: skip
            assert dims[f"present.{layer}.{kind}"] == past
