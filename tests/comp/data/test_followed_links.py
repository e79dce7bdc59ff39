"""Folders of linked images: read with ``--follow-links``, otherwise refused with that remedy."""

import inspect
import json

import pytest
from click.testing import CliRunner
from PIL import Image

from comp.cli import VERBS, cli
from comp.data.loading import load_task_data
from comp.errors import CompExportError
from comp.pipeline.options import PruneOptions

COCO = "COCO_val2014_000000000007.jpg"
LINES = {
    "question": {"image": "a.png", "question": "?", "answer": "!"},
    "caption": {"image": "a.png", "caption": "!"},
    "statement": {"images": ["a.png", "b.png"], "statement": "!", "label": True},
    "conversation": {
        "image": "a.png",
        "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}],
    },
    "karpathy": {"filename": "a.png", "split": "train", "sentences": [{"raw": "!"}]},
}


@pytest.fixture
def linked(tmp_path):
    """A folder whose pictures are links to files elsewhere, one of them through a linked folder."""
    (tmp_path / "store").mkdir()
    for name in ("a.png", "b.png", COCO):
        Image.new("RGB", (6, 4)).save(tmp_path / "store" / name)
    folder = tmp_path / "images"
    (folder / "inside").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        (folder / name).symlink_to(tmp_path / "store" / name)
    (folder / "val2014").symlink_to(tmp_path / "store", target_is_directory=True)
    Image.new("RGB", (6, 4)).save(folder / "inside" / "c.png")
    return folder


def data_of(tmp_path, kind):
    path = tmp_path / f"{kind}.json"
    line = LINES.get(kind)
    if kind == "vqav2":
        path = tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json"
        question_record = {"question_id": 1, "image_id": 7, "question": "?"}
        annotation_record = question_record | {
            "multiple_choice_answer": "!",
            "answers": [{"answer": "!"}],
        }
        for name, key, entry in (
            (path.name, "questions", question_record),
            ("v2_mscoco_val2014_annotations.json", "annotations", annotation_record),
        ):
            (tmp_path / name).write_text(json.dumps({"data_subtype": "val2014", key: [entry]}))
        return path
    whole = {"conversation": [line], "karpathy": {"images": [line]}}.get(kind, line)
    path.write_text(json.dumps(whole) + "\n")
    return path


@pytest.mark.parametrize(
    ("kind", "task", "split"),
    [
        ("question", "question", None),
        ("conversation", "question", None),
        ("vqav2", "question", None),
        ("caption", "caption", None),
        ("karpathy", "retrieval", "train"),
        ("statement", "statement", None),
    ],
)
def test_outside_links_are_followed_on_request(linked, tmp_path, kind, task, split):
    data = data_of(tmp_path, kind)
    with pytest.raises(CompExportError, match=r"leads out of .*, by a link: pass --follow-links"):
        load_task_data(task, data, linked, split)
    (example,) = load_task_data(task, data, linked, split, follow_links=True)
    shown = example.images[0] if task == "statement" else example.image
    assert shown.size == (6, 4)


@pytest.mark.parametrize("name", ["../store/a.png", "inside/../../store/a.png", "/etc/hostname"])
def test_names_outside_the_folder_are_refused(linked, tmp_path, name):
    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps(LINES["question"] | {"image": name}))
    with pytest.raises(
        CompExportError, match=r"leads out of the image folder .*: name a file inside"
    ):
        load_task_data("question", data, linked, follow_links=True)


def test_a_broken_link_is_refused(linked, tmp_path):
    (linked / "a.png").unlink()
    (linked / "a.png").symlink_to("nowhere.png")
    with pytest.raises(CompExportError, match=r"no image 'a\.png'"):
        load_task_data("question", data_of(tmp_path, "question"), linked, follow_links=True)


def test_the_option_reaches_the_data(linked, tmp_path):
    data = data_of(tmp_path, "question")
    words = ["data", "preview", "--data", data, "--images", linked, "--out", tmp_path / "o.png"]
    words = [str(word) for word in words]
    assert "pass --follow-links" in str(CliRunner().invoke(cli, words).exception)
    assert CliRunner().invoke(cli, [*words, "--follow-links"]).exit_code == 0


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_with_image_data_has_the_option(verb):
    command = cli.get_command(None, verb)
    names = {parameter.name for parameter in command.params}
    assert ({"data", "images"} <= names) == ("follow_links" in names)
    if "follow_links" in names:
        taken = set(inspect.signature(inspect.unwrap(command.callback)).parameters)
        assert "follow_links" in (PruneOptions.model_fields if verb == "prune" else taken)
