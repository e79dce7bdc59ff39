"""The proof's first link: transformers on pictures and text, against the engines that users call."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import export.exporter
from comp.checkpoints.locate import resolve_model
from comp.checkpoints.model_size import parameters_of
from comp.data.embedded import embedded_examples
from comp.data.emoji_scenes.captions import CaptionExamples
from comp.errors import CompExportError
from comp.families.loading import load_adapter
from comp.runs import RUN_VERSION, RunDirectory
from export.artifact.load import load_artifact
from export.exporter import Origin, export_artifact
from export.graph.builder import Target
from export.proof.first_link.compare import FirstLink, NotCompared, answers_of, compare_readings
from export.proof.first_link.in_training import InTraining
from export.proof.first_link.in_transformers import InTransformers
from export.proof.first_link.memory import memory_lacking
from export.proof.first_link.reading import Outputs, Reading, Refused
from export.proof.first_link.report import markdown_of, notes_of
from export.proof.first_link.request import Request, Requests, awkward, picture
from export.proof.outputs import logits
from export.weights.slim import write_slim_checkpoint
from serve.commands.onnx import command as onnx_command
from serve.first_link.links import FromUsers, refuse_parted

TASKS = ("question", "caption", "retrieval", "statement")
TINY = ("llava", "clip", "blip-vqa", "blip-caption", "blip-retrieval", "blip-nlvr")
EXAMPLES = 2
TOKENS = 4


class Fixed:
    """A side with the same output for every request."""

    def __init__(self, reading, name="fixed", grey=0):
        self.name, self.not_run, self._reading, self._grey = name, "", reading, grey

    def read(self, request, max_new_tokens, run):
        if isinstance(self._reading, Refused) or run:
            return self._reading
        return replace(self._reading, outputs=None)

    def nudged(self, request, max_new_tokens, seed):
        return self.moved[seed % len(self.moved)]

    def resized(self, images):
        return [np.full((4, 4, 3), self._grey, np.uint8) for _ in images]


def outputs(**changes):
    values = {"logits": logits(np.arange(5, dtype=np.float32))}
    return replace(Outputs(values, (4, 2), True, "a cat", (1.0, 1.0, 1.0)), **changes)


def reading(**changes):
    pixels = np.zeros((1, 3, 4, 4), np.float32)
    return replace(Reading(np.array([1, 5, 6]), pixels, "USER: what?", outputs()), **changes)


def link_of(mine, theirs, grey=0, awkward=False):
    requests = [Request("example 0", (picture(8, 8, 0),), "what?", awkward)]
    reference, side = Fixed(mine, "transformers"), Fixed(theirs, "ours", grey)
    expected = answers_of(reference, requests, TOKENS)
    return compare_readings(expected, reference, side, requests, TOKENS)


def test_equal_outputs_pass():
    link = link_of(reading(), reading())
    assert link.ok
    assert (link.compared, link.run, link.pixel_difference, link.outputs.absolute) == (1, 1, 0, 0)
    refuse_parted([link])


@pytest.mark.parametrize(
    ("step", "changes", "grey"),
    [
        ("template", {"prompt": "Q: what?", "input_ids": np.array([1, 7])}, 0),
        ("tokens", {"input_ids": np.array([1, 5])}, 0),
        ("tokens", {"input_ids": np.array([0, 5, 6])}, 0),
        ("resize", {"pixel_values": np.zeros((1, 3, 4, 5), np.float32)}, 0),
        ("resize", {"pixel_values": None}, 0),
        ("resize", {"pixel_values": np.full((1, 3, 4, 4), 0.1, np.float32)}, 9),
        ("normalise", {"pixel_values": np.full((1, 3, 4, 4), 2e-5, np.float32)}, 0),
        ("normalise", {"pixel_values": np.full((1, 3, 4, 4), np.nan, np.float32)}, 0),
        ("logits", {"outputs": outputs(values={"logits": logits(np.ones(5, np.float32))})}, 0),
        (
            "logits",
            {"outputs": outputs(values={"logits": logits(np.full(5, np.nan, np.float32))})},
            0,
        ),
        ("answer", {"outputs": outputs(tokens=(4, 3))}, 0),
        ("stop", {"outputs": outputs(tokens=(4, 2, 9, 9), ended=False)}, 0),
        ("stop", {"outputs": outputs(ended=False)}, 0),
        ("text", {"outputs": outputs(text="a  cat")}, 0),
    ],
)
def test_the_step_of_a_difference_is_reported(step, changes, grey):
    link = link_of(reading(), reading(**changes), grey)
    assert [each.step for each in link.parted] == [step]
    assert not link.ok
    assert f"part at {step}" in link.why
    with pytest.raises(CompExportError, match=f"the first at {step}: 'example 0'"):
        refuse_parted([link])
    report = json.loads(json.dumps(link.to_dict()))  # JSON has no NaN
    assert list(report["parted"]) == [step]
    assert any(step in note for note in notes_of([report]))
    assert f"{step}: 1" in "\n".join(markdown_of([report]))


def test_a_leading_bos_is_not_a_difference():
    link = link_of(reading(prompt="<s>USER: what?"), reading(prompt="USER: what?"))
    assert link.ok


def test_differences_within_rounding_pass():
    near = reading(pixel_values=np.full((1, 3, 4, 4), 9e-6, np.float32))
    assert link_of(reading(), near).ok
    close = outputs(values={"logits": logits(np.arange(5, dtype=np.float32) + 5e-4)})
    assert link_of(reading(), reading(outputs=close)).ok
    tie = outputs(margins=(1.0, 1e-5, 1.0))
    link = link_of(reading(outputs=tie), reading(outputs=outputs(tokens=(4, 3))))
    assert link.ok
    assert link.tied == ["example 0"]


@pytest.mark.parametrize("drops", [True, False])
@pytest.mark.parametrize("reaches", [True, False])
def test_ties_between_dropped_tokens_are_not_differences(drops, reaches):
    """A reference has a tie if rounded inputs change its result to the other side's."""
    other = reading(
        outputs=outputs(values={"logits": logits(np.ones(5, np.float32))}, tokens=(1, 2))
    )
    reference, side = Fixed(reading(), "transformers"), Fixed(other, "ours")
    reference.moved = [reading(), Refused("broken"), other if reaches else reading()]
    requests = [Request(f"example {n}", (picture(8, 8, 0),), "what?") for n in range(2)]
    expected = answers_of(reference, requests, TOKENS)
    link = compare_readings(expected, reference, side, requests, TOKENS, drops=drops)
    if drops and reaches:
        assert link.ok
        assert link.tied == ["example 0", "example 1"]
        assert link.outputs.absolute == 0
    else:
        assert not link.ok
        assert [each.step for each in link.parted] == ["logits"] * 2


@pytest.mark.slow
def test_a_nudge_changes_outputs_by_rounding_only(checkpoint):
    reference = InTransformers(checkpoint.path, "llava", "question", "transformers")
    request = Request("example 0", (picture(60, 40, 0),), "what?")
    usual = reference.read(request, TOKENS, run=True)
    moved = [reference.nudged(request, TOKENS, seed) for seed in (0, 0, 1)]
    logits = [each.outputs.values["logits"].values for each in (usual, *moved)]
    assert np.array_equal(logits[1], logits[2])
    for one, other in ((0, 1), (1, 3)):
        assert 0 < np.abs(logits[one] - logits[other]).max() < 1e-3
    again = reference.read(request, TOKENS, run=True)
    assert np.array_equal(again.outputs.values["logits"].values, logits[0])  # no hook is left


def test_one_sided_refusals_are_reported_and_fail_for_the_data():
    no = Refused("too long")
    link = link_of(reading(), no)
    assert not link.ok
    assert "example 0, which transformers answers, is refused: ours: too long" in link.why
    assert not link_of(reading(outputs=None), no).refused_of_data
    assert not link_of(no, reading()).refused_of_data
    assert link_of(no, reading(), awkward=True).refused == {"example 0": "transformers: too long"}
    both = link_of(no, no, awkward=True)
    assert both.both_refused == ["example 0"]
    assert not both.ok  # nothing was compared


def test_a_link_with_few_compared_requests_fails():
    class Picky(Fixed):
        def read(self, request, max_new_tokens, run):
            return self._reading if request.name == "0" else Refused("no patch_size")

    requests = [Request(str(n), (picture(8, 8, 0),), "what?") for n in range(3)]
    reference = Picky(reading(), "transformers")
    expected = answers_of(reference, requests, TOKENS)
    link = compare_readings(expected, reference, Fixed(reading()), requests, TOKENS)
    assert not link.ok
    assert "1 of 3 requests are taken by both sides: '1' by transformers: no patch_size" in link.why


def test_slow_models_are_compared_up_to_the_model_inputs():
    requests = [Request(f"example {n}", (), "what?") for n in range(3)]
    reference = Fixed(reading(pixel_values=None), "transformers")
    expected = answers_of(reference, requests, TOKENS, goes_on=lambda: False)
    link = compare_readings(expected, reference, reference, requests, TOKENS)
    assert (link.compared, link.run) == (3, 1)
    assert link.ok


@pytest.mark.parametrize("task", TASKS)
def test_awkward_requests_cover_every_kind(task):
    result = list(awkward(task, ("</s>",)))
    names = [request.name for request in result]
    assert len(set(names)) == len(names)
    assert all(request.awkward for request in result)
    again = list(awkward(task, ("</s>",)))
    assert [r.text for r in result] == [r.text for r in again]
    for mine, theirs in zip(result, again, strict=True):
        for first, second in zip(mine.images, theirs.images, strict=True):
            assert np.array_equal(np.asarray(first), np.asarray(second))
    shapes = {image.size for request in result for image in request.images}
    assert any(width > 20 * height for width, height in shapes)
    assert any(height > 20 * width for width, height in shapes)
    assert {image.mode for request in result for image in request.images} >= {
        "L",
        "LA",
        "RGBA",
        "P",
    }
    texts = [request.text for request in result]
    assert any(text != text.lstrip() for text in texts)
    assert any(text != text.rstrip() for text in texts)
    assert any("</s>" in text for text in texts)
    assert any(not text.isascii() for text in texts)
    assert {len(request.images) for request in result} >= {0, 2}


def test_a_checkpoint_larger_than_memory_is_compared_without_its_model(monkeypatch):
    directory = resolve_model("tiny-clip")
    assert memory_lacking(directory) == ""
    monkeypatch.setattr("export.proof.first_link.memory.memory_mb", lambda: 1)
    assert "GiB of memory" in memory_lacking(directory)
    needed = parameters_of(directory) * 4 / 2**20
    monkeypatch.setattr("export.proof.first_link.memory.memory_mb", lambda: 1.5 * needed)
    assert memory_lacking(directory) == ""
    assert "an engine beside it" in memory_lacking(directory, beside_engine=True)


def test_pictures_of_the_data_are_opened_lazily():
    class Opened(CaptionExamples):
        count = 0

        def __getitem__(self, index):
            type(self).count += 1
            return super().__getitem__(index)

    requests = Requests(Opened("test", 9), 5, "retrieval", ("</s>",))
    usual = list(awkward("retrieval", ("</s>",)))
    assert (len(requests), Opened.count) == (5 + len(usual), 0)
    result = list(requests)
    assert Opened.count == 5
    assert [each.name for each in result[:6]] == [
        *(f"example {index}" for index in range(5)),
        usual[0].name,
    ]
    assert result[0].text == CaptionExamples("test", 9)[0].answer
    assert not any(each.awkward for each in result[:5])


def made(directory: Path, model: str) -> tuple[RunDirectory, Path]:
    """A run of an embedded model with only its dense artifact."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "run.json").write_text(json.dumps({"version": RUN_VERSION, "model": model}))
    export_artifact(resolve_model(model), directory / "onnx-dense", Origin(model))
    return RunDirectory(directory), directory / "onnx-dense"


def first(artifact: Path, **settings) -> FromUsers:
    task = load_artifact(artifact, check_hashes=False).manifest.task
    return FromUsers(embedded_examples(task, "test", EXAMPLES), EXAMPLES, TOKENS, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_engines_and_batches_equal_transformers(name, tmp_path):
    run, directory = made(tmp_path, f"tiny-{name}")
    artifact = load_artifact(directory)
    adapter = load_adapter(resolve_model(f"tiny-{name}"))
    links = first(directory).of_original(
        run, [artifact], others=lambda: iter([InTraining(adapter)])
    )
    served, batches = links
    assert isinstance(served, FirstLink)
    assert isinstance(batches, FirstLink)
    assert served.ok, served.why
    assert served.run == served.compared >= EXAMPLES + 20
    assert not served.refused or set(served.refused) == {"<image> in the words"}
    assert batches.ok, batches.why
    assert batches.compared >= EXAMPLES + 18
    assert max(served.pixel_difference, batches.pixel_difference) == 0


def changed(directory: Path, change) -> None:
    """An artifact whose manifest is another one."""
    path = directory / "manifest.json"
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


CHANGES = {
    "normalise": lambda fields: fields["image_processor"].update(image_mean=[0.5, 0.5, 0.5]),
    "resize": lambda fields: fields["image_processor"].update(resample=0),
    "stop": lambda fields: fields["tokens"].update(eos_token_ids=[0]),
}


@pytest.mark.slow
def test_a_changed_manifest_is_reported_at_its_step(checkpoint, dense_artifact, tmp_path):
    run = RunDirectory(tmp_path)
    record = {"version": RUN_VERSION, "model": "tiny", "model_path": str(checkpoint.path)}
    run.record.write_text(json.dumps(record))
    directory = tmp_path / "onnx-dense"
    shutil.copytree(dense_artifact, directory)
    whole = (directory / "manifest.json").read_text()
    for step, change in CHANGES.items():
        changed(directory, change)
        (link,) = first(directory).of_original(run, [load_artifact(directory)])
        assert isinstance(link, FirstLink)
        assert not link.ok
        assert {each.step for each in link.parted} == {step}
        (directory / "manifest.json").write_text(whole)


def test_integers_that_the_cpu_cannot_run_are_not_compared(checkpoint, tmp_path, monkeypatch):
    run = RunDirectory(tmp_path)
    record = {"version": RUN_VERSION, "model": "tiny", "model_path": str(checkpoint.path)}
    run.record.write_text(json.dumps(record))
    target = Target("onnxruntime", "int8")
    export_artifact(checkpoint.path, tmp_path / "onnx-dense", Origin("tiny"), target)
    artifact = load_artifact(tmp_path / "onnx-dense")
    monkeypatch.setattr("serve.first_link.links.multiplies_exactly", lambda: False)
    (link,) = first(artifact.path).of_original(run, [artifact])
    assert isinstance(link, NotCompared)
    assert "no VNNI" in link.reason
    refuse_parted([link])


def test_checkpoints_that_transformers_cannot_load_are_not_compared(dense_artifact, tmp_path):
    run = RunDirectory(tmp_path)
    record = {"version": RUN_VERSION, "model": "gone", "model_path": str(tmp_path / "gone")}
    run.record.write_text(json.dumps(record))
    artifact = load_artifact(dense_artifact)
    (link,) = first(dense_artifact).of_original(run, [artifact])
    assert isinstance(link, NotCompared)
    assert "no longer at" in link.reason
    empty = tmp_path / "gone"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    (link,) = first(dense_artifact).of_original(run, [artifact])
    assert isinstance(link, NotCompared)
    assert "transformers cannot load" in link.reason


@pytest.mark.slow
def test_onnx_refuses_to_export_inputs_that_differ(checkpoint, plan, tmp_path, monkeypatch):
    record = {
        "version": RUN_VERSION,
        "model": str(checkpoint.path),
        "model_path": str(checkpoint.path),
    }
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.record.write_text(json.dumps(record))
    plan.save(run.plan_file)
    write_slim_checkpoint(checkpoint.path, plan, run.checkpoint)
    read = export.exporter.image_processing_for
    other = {"image_mean": (0.1, 0.2, 0.3)}
    monkeypatch.setattr(
        "export.exporter.image_processing_for", lambda *which: read(*which).model_copy(update=other)
    )
    refused = CliRunner().invoke(onnx_command, [str(run.path), "--json"])
    assert isinstance(refused.exception, CompExportError)
    assert "part at normalise" in str(refused.exception)
    assert not [path for path in run.path.iterdir() if "onnx" in path.name]
    passed = CliRunner().invoke(onnx_command, [str(run.path), "--json", "--no-check"])
    assert passed.exit_code == 0, passed.output
    monkeypatch.undo()
    passed = CliRunner().invoke(onnx_command, [str(run.path), "--json", "--force"])
    assert passed.exit_code == 0, passed.output
