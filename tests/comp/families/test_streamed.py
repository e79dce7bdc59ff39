"""A LLaVA whose decoder stays in its files is pruned exactly as one in memory."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from comp.adapter import Forwarding
from comp.checkpoints.slices import Cut
from comp.cli import cli
from comp.errors import CompExportError
from comp.families.loading import load_adapter
from comp.families.streamed import StoredMatrix, StreamedLinear, streamed_layers
from comp.masks import Masks
from comp.plan import PruningPlan
from comp.registry.methods import METHODS
from comp.runs import open_run
from tests.comp.commands.test_prune_command import KILLED
from tests.comp.small import questions, small_adapter

QUICK = ("--stages", "4", "--batch-size", "8", "--calibration", "8", "--validation", "8")
QUICK += ("--device", "cpu", "--dtype", "float32", "--recover", "none", "--json")


def prune(checkpoint, out, *more, rate="0.4"):
    arguments = ["prune", "--model", str(checkpoint), "--rate", rate, "--out", str(out)]
    return CliRunner().invoke(cli, [*arguments, *QUICK, *more])


def refusal_of(result):
    """Return the message of a refusal."""
    assert isinstance(result.exception, CompExportError), result.output
    return str(result.exception)


def whole_weights(directory):
    """Parametrise over checkpoints in one file and in several."""
    actual = {}
    for file in sorted(directory.glob("*.safetensors")):
        actual |= load_file(file)
    return actual


@pytest.fixture
def stored(tmp_path):
    torch.manual_seed(0)
    matrix = torch.randn(6, 4, dtype=torch.float16)
    save_file({"it": matrix}, tmp_path / "a.safetensors")
    return matrix, StoredMatrix(tmp_path / "a.safetensors", "it", (6, 4))


def test_a_layer_multiplies_by_the_stored_weights(stored):
    matrix, source = stored
    bias = torch.randn(6)
    layer, rows = StreamedLinear(source, bias), torch.randn(3, 4)
    assert torch.equal(layer(rows), torch.nn.functional.linear(rows, matrix.float(), bias))
    assert torch.equal(layer.weight, matrix)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_autocast_sets_the_type_of_the_product(kind, tmp_path):
    save_file({"it": torch.randn(6, 4).to(kind)}, tmp_path / "a.safetensors")
    layer = StreamedLinear(StoredMatrix(tmp_path / "a.safetensors", "it", (6, 4)))
    rows = torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        expected = torch.nn.functional.linear(rows, layer.weight.float())
        actual = layer(rows)
    assert actual.dtype == torch.bfloat16
    assert torch.equal(actual, expected)


def test_changing_a_copied_weight_leaves_the_layer_unchanged(stored):
    matrix, source = stored
    layer = StreamedLinear(source)
    layer.weight[0] = 0
    assert torch.equal(layer.weight, matrix)
    layer.change(torch.ones(6, 4))
    assert layer.weight.dtype == torch.float16
    layer.weight[0] = 0
    assert torch.equal(layer.weight, torch.ones(6, 4, dtype=torch.float16))


@pytest.mark.parametrize("changed", [False, True])
def test_a_cut_layer_has_the_kept_rows_and_columns(stored, changed):
    matrix, source = stored
    bias = torch.arange(6.0)
    layer = StreamedLinear(source, bias)
    if changed:
        matrix = matrix + 1
        layer.change(matrix)
    rows = layer.cut(Cut(0, (1, 4)))
    assert torch.equal(rows.weight, matrix[[1, 4]])
    assert rows.bias.tolist() == [1, 4]
    both = rows.cut(Cut(1, (0, 3)))
    assert torch.equal(both.weight, matrix[[1, 4]][:, [0, 3]])
    assert (both.out_features, both.in_features) == (2, 2)
    assert both.bias.tolist() == [1, 4]


def test_a_file_changed_while_streaming_is_refused(stored):
    _, source = stored
    layer = StreamedLinear(source)
    save_file({"it": torch.zeros(5, 4)}, source.file)
    with pytest.raises(CompExportError, match=r"\(5, 4\) now and was \(6, 4\)"):
        layer(torch.ones(1, 4))
    source.file.unlink()
    with pytest.raises(CompExportError, match="must stay as it is"):
        layer(torch.ones(1, 4))


@pytest.mark.parametrize("names", ["of transformers", "in memory"])
def test_it_answers_as_the_model_in_memory(names, checkpoint, tmp_path):
    directory = checkpoint
    if names == "in memory":
        adapter, directory = small_adapter(), tmp_path / "other"
        adapter.save(directory)
        save_file(adapter.model.state_dict(), directory / "model.safetensors")
    whole, streamed = (load_adapter(directory, streamed=streamed) for streamed in (False, True))
    assert len(streamed_layers(streamed.model)) == 4 * 7
    batch = whole.collate(questions(4))
    masks = Masks.ones(whole.blocks)
    masks.heads["language", 1][0] = 0
    masks.channels["language", 2][::2] = 0
    assert whole.blocks == streamed.blocks
    with torch.no_grad():
        for forwarding in (Forwarding(), Forwarding(masks)):
            ours, theirs = (adapter.score(batch, forwarding) for adapter in (streamed, whole))
            assert torch.equal(ours.loss, theirs.loss)


def test_a_checkpoint_missing_a_matrix_is_refused(checkpoint, tmp_path):
    small_adapter().save(tmp_path / "it")
    tensors = load_file(tmp_path / "it" / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layers.2.mlp.up_proj.weight"))
    cut = tensors | {name: tensors[name][:, :8].contiguous()}
    save_file(cut, tmp_path / "it" / "model.safetensors")
    with pytest.raises(CompExportError, match=r"up_proj\.weight is \[160, 8\]"):
        load_adapter(tmp_path / "it", streamed=True)
    del tensors[name]
    save_file(tensors, tmp_path / "it" / "model.safetensors")
    with pytest.raises(CompExportError, match=r"has no tensor .*layers\.2\.mlp\.up_proj\.weight"):
        load_adapter(tmp_path / "it", streamed=True)


METHODS_HERE = [method.name for method in METHODS if "llava" in method.families]
RATES = {"pdrop": "0.1", "fastv": "0.1", "dart": "0.1", "visionzip": "0.1"}


@pytest.mark.parametrize("name", METHODS_HERE)
def test_every_method_gives_the_same_plan_and_weights_when_streamed(name, checkpoint, tmp_path):
    more = ("--method", name, *(("--modes", "vt,lt,lp,vp") if name == "comp" else ()))
    rate = RATES.get(name, "0.4")
    streamed = prune(checkpoint, tmp_path / "streamed", "--stream", *more, rate=rate)
    if any(method.differentiates for method in METHODS if method.name == name):
        assert "needs gradients" in refusal_of(streamed)
        assert not (tmp_path / "streamed").exists()
        return
    assert streamed.exit_code == 0, streamed.output
    assert prune(checkpoint, tmp_path / "whole", "--no-stream", *more, rate=rate).exit_code == 0
    ours, theirs = (open_run(tmp_path / run) for run in ("streamed", "whole"))
    assert ours.load_plan() == theirs.load_plan()
    assert ours.stages.read_text() == theirs.stages.read_text()
    read, wanted = (load_adapter(run.checkpoint).model.state_dict() for run in (ours, theirs))
    assert read.keys() == wanted.keys()
    for key, tensor in read.items():
        assert torch.allclose(tensor, wanted[key], atol=1e-5), key
    assert ours.read_record()["request"]["stream"] is True
    assert ours.read_record()["metric"] == theirs.read_record()["metric"]


def test_a_slim_checkpoint_is_streamed(checkpoint, tmp_path):
    assert prune(checkpoint, tmp_path / "run", "--stream").exit_code == 0
    directory = open_run(tmp_path / "run").checkpoint
    assert len(list(directory.glob("*.safetensors"))) == 1 + 4
    streamed, whole = (load_adapter(directory, streamed=streamed) for streamed in (True, False))
    batch = whole.collate(questions(4))
    with torch.no_grad():
        losses = [adapter.score(batch, Forwarding()).loss for adapter in (streamed, whole)]
    assert torch.equal(*losses)


def test_a_killed_search_resumes_with_its_changed_matrices(checkpoint, tmp_path):
    more = ("--stream", "--modes", "lp,vp")
    assert prune(checkpoint, tmp_path / "whole", *more).exit_code == 0
    out = tmp_path / "killed"
    arguments = ["prune", "--model", str(checkpoint), "--rate", "0.4", "--out", str(out), *QUICK]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments, *more],
        cwd=Path.cwd(),
        check=False,
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert (
        b"UNEXPECTED" not in killed.stderr
    )  # transformers' report of the weights that stayed in the files
    state = json.loads((out / ".state" / "search.json").read_text())
    saved = load_file(out / ".state" / state["weights"])
    assert any("down_proj" in name for name in saved)
    assert not any("up_proj" in name for name in saved)
    assert prune(checkpoint, out, *more, "--resume").exit_code == 0
    plans = [PruningPlan.load(run / "plan.json") for run in (out, tmp_path / "whole")]
    assert plans[0] == plans[1]
    ours, theirs = (whole_weights(run / "checkpoint") for run in (out, tmp_path / "whole"))
    for name, tensor in ours.items():
        assert torch.allclose(tensor, theirs[name], atol=1e-5), name


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (("--recover", "full"), "--recover none"),
        (("--device-map", "auto"), "leave one of them out"),
        (("--model", "tiny-clip"), "leave it out"),
    ],
)
def test_streaming_unsupported_models_is_refused(more, why, checkpoint, tmp_path):
    result = prune(checkpoint, tmp_path / "run", "--stream", *more)
    assert why in refusal_of(result)
    assert not (tmp_path / "run").exists()
