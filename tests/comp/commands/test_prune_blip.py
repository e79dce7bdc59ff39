"""`comp-export prune` of a BLIP as a user runs it, on small random checkpoints saved by transformers."""

import json

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import comp.methods.comp as method
from comp.adapter import Forwarding
from comp.cli import cli
from comp.errors import CompExportError
from comp.families.loading import load_adapter
from comp.runs import open_run
from comp.tokens.drop_rules import rules_from_plan
from tests.comp.small_blip import LAYERS, SEEN, TASKS, examples_of, random_blip
from tests.drawing import drawn

QUICK = ("--stages", "5", "--steps-per-stage", "1", "--recover-steps", "2", "--batch-size", "4")
QUICK += ("--calibration", "8", "--validation", "8", "--dtype", "float32", "--device", "cpu")
METRICS = {
    "question": "validation exact match",
    "caption": "validation next-token accuracy",
    "retrieval": "validation R@1 among 4",
    "statement": "validation accuracy",
}
CROSS = {"question": 2 * LAYERS, "caption": LAYERS, "retrieval": LAYERS, "statement": 2 * LAYERS}


def prune(checkpoint, out, *more, rate="0.5"):
    arguments = ["prune", "--model", str(checkpoint), "--rate", rate, "--out", str(out)]
    return CliRunner().invoke(cli, [*arguments, *QUICK, *more], catch_exceptions=False)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blip")
    for task in TASKS:
        random_blip(task).save(folder / task)
    return {task: folder / task for task in TASKS}


@pytest.fixture(scope="module", params=TASKS)
def pruned(request, checkpoints, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / request.param
    with drawn():
        result = prune(checkpoints[request.param], out, "--json")
    assert result.exit_code == 0, result.output
    return request.param, json.loads(result.stdout), open_run(out)


def test_each_task_is_pruned(pruned):
    task, printed, run = pruned
    plan = run.load_plan()
    assert (plan.family, plan.task) == ("blip", task)
    assert printed["rate"] == plan.rate == pytest.approx(0.5, abs=0.01)
    assert printed["metric"]["name"] == METRICS[task]
    parts = {"vision": LAYERS, "language": LAYERS * (1 + (task == "question"))}
    parts["cross"] = CROSS[task]
    assert {part: len(plan.part(part)) for part in parts} == parts
    lines = [json.loads(line) for line in run.stages.read_text().splitlines()]
    assert len({line["mode"] for line in lines}) >= 4
    modes = 4 if task == "caption" else 5
    assert {len(line["costs"]) for line in lines} == {modes}
    assert (run.reports / "structure.png").is_file()


@torch.no_grad()
def test_the_slim_checkpoint_has_the_recorded_score(pruned):
    task, printed, run = pruned
    adapter = load_adapter(run.checkpoint)
    plan = run.load_plan()
    assert adapter.model.drops == plan.drops
    forwarding = Forwarding(rules=rules_from_plan(plan.drops))
    examples = examples_of(task, 8)
    actual = [
        adapter.score(adapter.collate(examples[i : i + 4]), forwarding).correct for i in (0, 4)
    ]
    right = torch.cat(actual).double().mean()
    assert float(right) == pytest.approx(printed["metric"]["compressed"])


def test_inspect(pruned):
    task, _, run = pruned
    result = CliRunner().invoke(cli, ["inspect", str(run.path)])
    assert result.exit_code == 0, result.output
    images = 2 if task == "statement" else 1
    for words in ("vision 2", "language 2", f"cross {CROSS[task] - 1}", f"{images * SEEN} + 0"):
        assert words in result.output
    actual = json.loads(CliRunner().invoke(cli, ["inspect", str(run.path), "--json"]).stdout)
    tokens = actual["plan"]["tokens_per_layer"]
    assert actual["plan"]["task"] == task
    assert len(tokens["vision"]) == LAYERS
    assert tokens["vision"][0] == images * SEEN
    load = run.load_plan().workload
    if task == "question":  # the decoder's text is not the question
        assert len(tokens["text"]) == 2 * LAYERS
        assert tokens["text"][LAYERS:] == [5] * LAYERS
    assert tokens["text"][0] == load.text_tokens


def test_a_slim_model_is_not_pruned_again(pruned, tmp_path):
    _, _, run = pruned
    with pytest.raises(CompExportError, match="pruned already: prune the dense blip"):
        prune(run.checkpoint, tmp_path / "again")


def test_an_interrupted_run_resumes_to_the_same_plan(checkpoints, tmp_path, monkeypatch):
    whole = prune(checkpoints["statement"], tmp_path / "whole")
    assert whole.exit_code == 0, whole.output
    real, saved = method.save_search, []

    def interrupted(*given):
        real(*given)
        saved.append(given)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(method, "save_search", interrupted)
    assert prune(checkpoints["statement"], tmp_path / "cut").exit_code != 0
    assert not (tmp_path / "cut" / "plan.json").exists()
    monkeypatch.setattr(method, "save_search", real)
    resumed = prune(checkpoints["statement"], tmp_path / "cut", "--resume")
    assert resumed.exit_code == 0, resumed.output
    one, two = open_run(tmp_path / "whole"), open_run(tmp_path / "cut")
    assert one.load_plan() == two.load_plan()
    ours, theirs = (load_file(run.checkpoint / "model.safetensors") for run in (one, two))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_lora_recovers_a_blip(checkpoints, tmp_path):
    more = ("--recover", "lora", "--lora-rank", "2", "--modes", "cp,lt,vp,lp,vt")
    result = prune(checkpoints["question"], tmp_path / "run", *more)
    assert result.exit_code == 0, result.output
    adapter = load_adapter(tmp_path / "run" / "checkpoint")
    assert not any("lora" in name for name, _ in adapter.model.named_parameters())


def test_calibration_only_trains_nothing(checkpoints, tmp_path):
    result = prune(
        checkpoints["caption"], tmp_path / "run", "--recover", "none", "--modes", "cp,vt"
    )
    assert result.exit_code == 0, result.output
    plan = open_run(tmp_path / "run").load_plan()
    assert all(len(b.kept_channels) == b.intermediate_size for b in plan.blocks)
    embeddings = "text_decoder.bert.embeddings.word_embeddings.weight"
    folders = (checkpoints["caption"], tmp_path / "run" / "checkpoint")
    states = [load_file(folder / "model.safetensors") for folder in folders]
    assert torch.equal(states[0][embeddings], states[1][embeddings])


def test_a_mode_that_captioning_lacks_is_refused(checkpoints, tmp_path):
    with pytest.raises(CompExportError, match=r"choose from vision_tokens, vision_p.*cross_param"):
        prune(checkpoints["caption"], tmp_path / "run", "--modes", "vt,lt")
    assert not (tmp_path / "run").exists()


def as_line(task, number, example, folder):
    """Write an example as a line of a user's own file, and its images next to it."""
    images = example.images if task == "statement" else [example.image]
    names = [f"{number}-{which}.png" for which in range(len(images))]
    for name, image in zip(names, images, strict=True):
        image.save(folder / name)
    if task == "statement":
        return {"images": names, "statement": example.statement, "label": example.answer}
    fields = {"question": example.question, "answer": example.answer}
    return {"image": names[0]} | (fields if task == "question" else {"caption": example.answer})


@pytest.mark.parametrize("task", TASKS)
def test_own_data(checkpoints, tmp_path, task):
    examples = examples_of(task, 40, "train")
    lines = [json.dumps(as_line(task, *each, tmp_path)) for each in enumerate(examples)]
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    more = ("--data", str(tmp_path / "own.jsonl"), "--modes", "vt")
    result = prune(checkpoints[task], tmp_path / "run", *more, rate="0.2")
    assert result.exit_code == 0, result.output
    other = "question" if task == "statement" else "statement"
    with pytest.raises(CompExportError, match=r"own\.jsonl"):
        prune(checkpoints[other], tmp_path / "other", *more)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["BlipModel"]}, "architecture 'BlipModel': supported are BlipForCond"),
        ({"architectures": None}, "architecture '': supported are"),
        (
            {"model_type": "blip-2"},
            "'blip-2' model: supported are checkpoints of llava, smolvlm, idefics3, internvl, clip, blip",
        ),
        ({"model_type": "comp_blip_nlvr"}, "'comp_blip_nlvr' model of architecture 'BlipForQ"),
        ({"model_type": "comp_blip"}, "supported are CompBlipForConditionalGeneration"),
    ],
)
def test_other_architectures_are_refused(checkpoints, tmp_path, change, message):
    config = json.loads((checkpoints["question"] / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CompExportError, match=message):
        load_adapter(tmp_path)


def test_incomplete_weights_are_refused(checkpoints, tmp_path):
    """transformers would initialise missing weights at random."""
    for path in checkpoints["statement"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    name = "text_encoder.encoder.layer.1.crossattention.self1.query.weight"
    del state[name]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CompExportError, match=f"lacks {name}"):
        load_adapter(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(
        CompExportError, match=r"no model\.safetensors and no model\.safetensors\.index\.json"
    ):
        load_adapter(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CompExportError, match="a pickle, which is never loaded"):
        load_adapter(tmp_path)
