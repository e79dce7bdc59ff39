"""Invalid text in data files is refused when it is read, with its record."""

import json
from pathlib import Path

import pytest
from PIL import Image

from comp.data.loading import load_task_data
from comp.errors import CompExportError

HALF = "what\ud83d?"
GOOD = {"image": "a.png", "question": "what?", "answer": "a cat", "caption": "a cat"}
TURNS = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "a cat"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "p-0-0-img0.png", "p-0-0-img1.png", "COCO_val2014_000000000042.jpg"):
        Image.new("RGB", (8, 6)).save(tmp_path / name)
    return tmp_path


def lines(path: Path, *records: object) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records))
    return path


def conversations(path: Path, value: str) -> Path:
    whole = {"id": "x", "image": "a.png", "conversations": TURNS}
    broken = whole | {"conversations": [TURNS[0] | {"value": value}, TURNS[1]]}
    path.write_text(json.dumps([whole] * 3 + [broken]))
    return path


def vqav2(folder: Path, question: str = "what?", answer: str = "a cat") -> Path:
    questions = [
        {"question_id": number, "image_id": 42, "question": question if number == 3 else "what?"}
        for number in range(5)
    ]
    annotations = [
        {
            "question_id": number,
            "image_id": 42,
            "answer_type": "other",
            "multiple_choice_answer": answer if number == 4 else "a cat",
            "answers": [{"answer": "a cat"}],
        }
        for number in range(5)
    ]
    path = folder / "v2_OpenEnded_mscoco_val2014_questions.json"
    path.write_text(json.dumps({"data_subtype": "val2014", "questions": questions}))
    (folder / "v2_mscoco_val2014_annotations.json").write_text(
        json.dumps({"data_subtype": "val2014", "annotations": annotations})
    )
    return path


def karpathy(path: Path, caption: str) -> Path:
    images = [
        {"filename": "a.png", "split": "test", "sentences": [{"raw": raw}]}
        for raw in ("a cat", "a dog", caption)
    ]
    path.write_text(json.dumps({"images": images}))
    return path


@pytest.mark.parametrize("value", [HALF, "\udc00", "\ud83d \ude00"])
def test_a_lone_surrogate_is_refused_with_its_record(folder: Path, value: str) -> None:
    nlvr2 = {"identifier": "p-0-0-0", "sentence": "two cats", "label": "True"}
    question = {"task": "question"}
    caption = {"task": "caption", "split": "test"}
    for words, options, path in (
        (
            r"line 2: question holds half",
            question,
            lines(folder / "q.jsonl", GOOD, GOOD | {"question": value}, GOOD),
        ),
        (
            "line 3: answer",
            question,
            lines(folder / "a.jsonl", GOOD, GOOD, GOOD | {"answer": value}),
        ),
        ("line 1: image", question, lines(folder / "i.jsonl", GOOD | {"image": value})),
        (
            "line 2: caption",
            {"task": "caption"},
            lines(folder / "c.jsonl", GOOD, GOOD | {"caption": value}),
        ),
        (
            "line 2: sentence",
            {"task": "statement"},
            lines(folder / "s.jsonl", nlvr2, nlvr2 | {"sentence": value}),
        ),
        (
            r"l\.json: \[3\]\.conversations\[0\]\.value",
            question,
            conversations(folder / "l.json", value),
        ),
        (r"k\.json: images\[2\]\.sentences\[0\]\.raw", caption, karpathy(folder / "k.json", value)),
        (r"questions\.json: questions\[3\]\.question", question, vqav2(folder, question=value)),
    ):
        with pytest.raises(CompExportError, match=words):
            load_task_data(path=path, images=folder, **options)
    with pytest.raises(CompExportError, match=r"annotations\[4\]\.multiple_choice_answer"):
        load_task_data("question", vqav2(folder, answer=value), folder)


def test_surrogate_pairs_are_read_in_any_notation(folder: Path) -> None:
    path = lines(folder / "q.jsonl", GOOD | {"question": "where is 🦊?"})
    assert "\\ud83e" in path.read_text()
    assert load_task_data("question", path, folder)[0].question == "where is 🦊?"


@pytest.mark.parametrize("name", ["a\0.png", "a" * 5000 + ".png"])
def test_impossible_file_names_are_refused(folder: Path, name: str) -> None:
    path = lines(folder / "q.jsonl", GOOD | {"image": name})
    with pytest.raises(CompExportError, match=r"line 1: image .* is no name that a file can have"):
        load_task_data("question", path, folder)


def test_a_byte_order_mark_is_not_part_of_the_text(folder: Path) -> None:
    for path in (
        lines(folder / "q.jsonl", GOOD),
        conversations(folder / "l.json", "what?"),
        vqav2(folder),
    ):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert load_task_data("question", path, folder)[0].question == "what?"


def test_deeply_nested_json_is_refused(folder: Path) -> None:
    for text in ("[" * 100_000, '{"image": ' + "[" * 100_000):
        (folder / "deep.json").write_text(text)
        with pytest.raises(CompExportError, match="nested deeper"):
            load_task_data("question", folder / "deep.json", folder)
