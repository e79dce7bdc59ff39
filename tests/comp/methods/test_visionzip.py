"""VisionZip: the tokens that meet a rate, batches with fewer places, and a run up to `verify`."""

import json

import pytest
import torch
from click.testing import CliRunner

from comp.adapter import Forwarding
from comp.checkpoints.llava_shape import read_shape
from comp.cli import cli
from comp.errors import CompExportError
from comp.families.llava.batches import narrowed
from comp.families.loading import load_adapter
from comp.flops.llava import llava_macs
from comp.methods import visionzip
from comp.plan import Workload
from comp.runs import open_run
from comp.search.job import agreed_workload
from comp.tokens.state import VISION
from tests.comp.jobs import small_job
from tests.comp.methods.test_token_methods import QUICK
from tests.comp.small import questions, small_adapter

RATE = 0.15


def call(*words):
    result = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout) if "--json" in words else result.stdout


@pytest.mark.parametrize(
    ("rate", "dominant", "contextual"), [(0.5846, 162, 30), (0.6804, 108, 20), (0.7756, 54, 10)]
)
def test_llava_7b_keeps_the_token_counts_of_the_paper(rate, dominant, contextual):
    result = visionzip.solved(
        read_shape("llava-7b"), Workload(image_tokens=576, text_tokens=60), rate
    )
    assert (result.dominant, result.contextual) == (dominant, contextual)


def test_flops_by_hand():
    """Two images of LLaVA-1.5-7B: two towers, 2 × 64 tokens in projector and language model."""
    shape = read_shape("llava-7b")
    selection = visionzip.selection_of(576, 64)
    dense, result = llava_macs(shape, 1152, 40), llava_macs(shape.selecting(selection), 1152, 40)
    merging = (576 - 54) * 10 * (64 + 1024)  # cosines of keys, mixtures of states
    assert result.parts["vision"].macs == dense.parts["vision"].macs + 2 * merging
    assert result.parts["projector"].macs == 2 * 64 * (1024 * 4096 + 4096 * 4096)
    assert result.parts["language"].macs == 32 * (
        4 * 168 * 4096**2 + 2 * 168**2 * 4096 + 3 * 168 * 4096 * 11008
    )
    assert result.tokens_per_layer == (168,) * 32
    assert result.params == dense.params


def test_the_largest_reachable_rate_is_named(tmp_path):
    with pytest.raises(CompExportError, match=r"at most 0\.\d\d; choose a smaller --rate"):
        visionzip.prune(small_job("llava", tmp_path, 0.99))


def test_batches_have_one_place_per_kept_image_token():
    adapter = small_adapter()
    examples = questions(3)
    wide = adapter.collate(examples)
    result = narrowed(wide, adapter.collator.image_token_id, 16, 5)
    adapter.collator.image_tokens = 5
    short = adapter.collate(examples)
    for name in ("pixel_values", "input_ids", "kind", "alive", "query", "labels"):
        assert torch.equal(getattr(result.batch, name), getattr(short, name)), name
    # Text keeps its position; images have the tower's tokens 1 3 8 9 15, in another order.
    chosen = torch.tensor([[1, 3, 8, 15, 9]] * 3)
    origin = result.origin_of(chosen, adapter.collator.image_token_id)
    assert torch.equal(wide.input_ids.gather(1, origin), short.input_ids)
    first = (wide.kind == VISION).int().argmax(1, keepdim=True)
    assert torch.equal(origin[short.kind == VISION].view(3, 5), first + chosen)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    job = small_job("llava", tmp_path_factory.mktemp("state"), RATE, modes=("vision_tokens",))
    return job, visionzip.prune(job)


def test_only_image_tokens_are_selected(pruned):
    job, outcome = pruned
    plan, load = outcome.plan, agreed_workload(job)
    selection = plan.image_selection
    assert (plan.method, outcome.steps, plan.drops) == ("visionzip", 0, ())
    assert selection.tower_tokens == 16
    assert selection.contextual == round(selection.count * 10 / 64)
    assert all(len(block.kept_channels) == block.intermediate_size for block in plan.blocks)
    shape = job.adapter.shape
    rates = [
        1 - visionzip.macs_of(shape, load, visionzip.selection_of(16, count)) / plan.macs_dense
        for count in range(1, 17)
    ]
    assert abs(plan.rate - RATE) == pytest.approx(min(abs(rate - RATE) for rate in rates))
    assert plan.macs == llava_macs(shape, load.image_tokens, load.text_tokens, plan).macs
    (line,) = [json.loads(line) for line in (job.folder / "stages.jsonl").open()]
    assert (line["mode"], line["rate"]) == ("vision_tokens", plan.rate)
    assert line["metric"] == outcome.pruned_metric


@torch.no_grad()
def test_masked_cut_and_saved_models_agree(pruned, tmp_path):
    job, outcome = pruned
    batch = job.data.validation[0]
    slim = job.adapter.cut(outcome.plan)
    slim.save(tmp_path)
    dense = job.adapter.score(batch, Forwarding())
    choosing = job.adapter.selecting(outcome.plan.image_selection)
    scored = [each.score(batch, Forwarding()) for each in (choosing, slim, load_adapter(tmp_path))]
    for each in scored[1:]:
        assert float(each.loss) == pytest.approx(float(scored[0].loss), abs=1e-5)
    assert abs(float(dense.loss) - float(scored[0].loss)) > 1e-3
    assert slim.processor.num_additional_image_tokens == 1 - 16 + outcome.plan.image_selection.count
    assert job.adapter.processor.num_additional_image_tokens == 1
    assert slim.workload([batch]) == job.adapter.workload([batch])


@torch.no_grad()
def test_teacher_targets_are_of_the_same_tokens(pruned):
    """Text and dominant image tokens keep their position in the dense model's sequence."""
    job, outcome = pruned
    selection = outcome.plan.image_selection
    batch = job.data.validation[0]
    targets = job.adapter.selecting(selection).score(batch, Forwarding()).targets()
    tokens = targets.tokens[0]
    teacher = job.adapter.score(batch, Forwarding()).targets()
    assert teacher.logits[0].shape == targets.logits[0].shape
    assert torch.equal(
        batch.kind.gather(1, tokens.index)[tokens.alive > 0], tokens.kind[tokens.alive > 0]
    )
    for row in range(len(batch.input_ids)):
        image = tokens.index[row][(tokens.kind[row] == VISION) & (tokens.alive[row] > 0)]
        assert len(set(image.tolist())) == selection.count
        strong = image[: selection.dominant]
        assert torch.equal(strong, strong.sort().values)


@pytest.mark.slow
def test_from_prune_to_verify(checkpoint, tmp_path):
    """Distil from the dense model, save, export and verify."""
    out = tmp_path / "small"
    words = ("prune", "--model", checkpoint, "--rate", RATE, "--out", out, "--method", "visionzip")
    printed = call(*words, *QUICK, "--distill", "both", "--json")
    run = open_run(out)
    plan = run.load_plan()
    assert printed["rate"] == plan.rate
    call("onnx", out, "--no-check", "--json")
    report = call("verify", out, "--questions", 3, "--answer-seconds", 0, "--json")
    assert report["ok"]
    assert [len(link["kept"]) for link in report["links"]] == [1, 1, 0]
    chosen = plan.image_selection
    assert "Image tokens after the vision tower" in call("inspect", out)
    counted = call("flops", "--model", run.checkpoint, "--json")
    assert counted["tokens_per_layer"][0] == chosen.count + counted["workload"]["text_tokens"]
