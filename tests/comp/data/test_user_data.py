import json
from pathlib import Path

import pytest
from PIL import Image

from comp.data.loading import load_task_data
from comp.errors import CompExportError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    (images / "coco").mkdir(parents=True)
    Image.new("RGB", (8, 6), "red").save(images / "a.png")
    Image.new("L", (5, 5), 128).save(images / "coco" / "b.jpg")
    return images


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def instruct(**changes: object) -> list[dict[str, object]]:
    entry = {
        "id": "1",
        "image": "a.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat colour?"},
            {"from": "gpt", "value": "Red."},
            {"from": "human", "value": "Is it large?"},
            {"from": "gpt", "value": "No."},
        ],
    }
    return [entry | changes]


def test_llava_instruct_gives_one_example_per_turn(folder: Path, tmp_path: Path) -> None:
    data = load_task_data("question", write(tmp_path / "d.json", instruct()), folder)
    assert [(e.question, e.answer, e.kind) for e in data] == [
        ("What colour?", "Red.", "conversation"),
        ("Is it large?", "No.", "conversation"),
    ]
    assert data[0].image.size == (8, 6)
    assert data[0].image.getpixel((0, 0)) == (255, 0, 0)


def test_image_mark_may_follow_the_question(folder: Path, tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "What colour?\n<image>"}, {"from": "gpt", "value": "Red"}]
    data = load_task_data(
        "question", write(tmp_path / "d.json", instruct(conversations=turns)), folder
    )
    assert data[0].question == "What colour?"


def test_records_without_an_image_are_skipped_with_a_warning(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text_only = {"id": "2", "conversations": instruct()[0]["conversations"]}
    data = load_task_data("question", write(tmp_path / "d.json", [*instruct(), text_only]), folder)
    assert len(data) == 2
    assert "left out 1 of 2 records" in capsys.readouterr().err


def test_jsonl_is_read(folder: Path, tmp_path: Path) -> None:
    lines = [
        {"image": "coco/b.jpg", "question": "What?", "answer": " grey "},
        {"image": "a.png", "question": "Colour?", "answer": "red", "kind": "colour"},
    ]
    text = "\n\n".join(json.dumps(line) for line in lines) + "\n"
    data = load_task_data("question", write(tmp_path / "d.jsonl", text), folder)
    assert [(e.answer, e.kind, e.image.mode) for e in data] == [
        ("grey", "question", "RGB"),
        ("red", "colour", "RGB"),
    ]
    assert [e.answer for e in data[1:]] == ["red"]


def test_images_default_to_the_folder_of_the_file(folder: Path) -> None:
    line = {"image": "a.png", "question": "?", "answer": "!"}
    assert len(load_task_data("question", write(folder / "d.jsonl", line))) == 1


def test_images_are_opened_on_access(folder: Path, tmp_path: Path) -> None:
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    lines = [{"image": name, "question": "?", "answer": "!"} for name in ("a.png", "broken.png")]
    path = write(tmp_path / "d.jsonl", "\n".join(map(json.dumps, lines)))
    data = load_task_data("question", path, folder)
    assert data[0].image.size == (8, 6)
    with pytest.raises(CompExportError, match=r"d\.jsonl, line 2: image .*broken\.png"):
        data[1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"neither JSON nor an object a line \(.*line 1 column 2"),
        ("[]", "no question about an image"),
        ({"question": "?", "answer": "x"}, "unknown kind of data"),
        ({"image": "a.png", "question": "?"}, "'answer' is None"),
        ({"image": "a.png", "question": 3, "answer": "x"}, "'question' is 3"),
        ({"image": "a.png", "question": " ", "answer": "x"}, "'question' is empty"),
        ({"image": "none.png", "question": "?", "answer": "x"}, "no image 'none.png'"),
        ({"image": "../secret.png", "question": "?", "answer": "x"}, "leads out of"),
        ({"image": "/etc/passwd", "question": "?", "answer": "x"}, "leads out of"),
        ({"image": "link.png", "question": "?", "answer": "x"}, "leads out of"),
    ],
)
def test_bad_lines_are_refused(folder: Path, tmp_path: Path, line: object, message: str) -> None:
    Image.new("RGB", (3, 3)).save(tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    path = write(tmp_path / "d.jsonl", line)
    with pytest.raises(CompExportError, match=message) as failure:
        load_task_data("question", path, folder)
    assert str(path) in str(failure.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [("{", "line 3 is not JSON"), ("[]", "line 3 is no object"), ("{}", "line 3: 'image'")],
)
def test_a_bad_line_is_named_by_its_number(
    folder: Path, tmp_path: Path, line: str, message: str
) -> None:
    good = json.dumps({"image": "a.png", "question": "?", "answer": "x"})
    with pytest.raises(CompExportError, match=message):
        load_task_data("question", write(tmp_path / "d.jsonl", f"{good}\n\n{line}"), folder)


def test_only_line_feeds_end_a_line(folder: Path, tmp_path: Path) -> None:
    """JSON allows U+2028 in a text, and Python's splitlines ends a line there."""
    line = {"image": "a.png", "question": "one\u2028two", "answer": "x"}
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(line, ensure_ascii=False) + "\r\n", encoding="utf-8")
    assert load_task_data("question", path, folder)[0].question == "one\u2028two"


HUMAN, GPT = {"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[\n{", r"d\.json is neither JSON"),
        ({}, "unknown kind of data"),
        ([3], "record 1 is no object"),
        (instruct(conversations=[]), r"record 1 \(id 1\): conversations must be"),
        (instruct(conversations=None), "conversations must be"),
        (instruct(conversations=[HUMAN]), "conversations must be"),
        (instruct(conversations=[GPT, HUMAN]), "human first"),
        (instruct(conversations=[HUMAN, {"from": "gpt"}]), "'value' is None"),
        (instruct(conversations=[{"from": "human", "value": "<image>"}, GPT]), "is empty"),
        (
            instruct(conversations=[{"from": "human", "value": "<image> <image> ?"}, GPT]),
            "stands 2 times in turn 1",
        ),
        (instruct(image=["a.png", "b.png"]), "'image' is"),
        ([{"id": 1, "conversations": [HUMAN, GPT]}], "no question about an image"),
    ],
)
def test_bad_conversations_are_refused(
    folder: Path, tmp_path: Path, content: object, message: str
) -> None:
    with pytest.raises(CompExportError, match=message):
        load_task_data("question", write(tmp_path / "d.json", content), folder)


def test_bad_files_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CompExportError, match="neither JSON nor"):
        load_task_data("question", write(tmp_path / "d.csv", "a"), folder)
    with pytest.raises(CompExportError, match="is empty"):
        load_task_data("question", write(tmp_path / "empty.json", " \n"), folder)
    with pytest.raises(CompExportError, match=r"cannot read .*none\.json"):
        load_task_data("question", tmp_path / "none.json", folder)
    with pytest.raises(CompExportError, match="no image folder"):
        load_task_data("question", write(tmp_path / "d.json", instruct()), tmp_path / "nowhere")
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "caf\xe9"}')
    with pytest.raises(CompExportError, match="not UTF-8"):
        load_task_data("question", tmp_path / "latin.jsonl", folder)
