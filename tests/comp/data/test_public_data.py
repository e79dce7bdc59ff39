"""Files in the published formats of NLVR2 and VQAv2, and the choice of a reader by content."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comp.data.formats.nlvr2 import load_nlvr2
from comp.data.formats.vqav2 import load_vqav2
from comp.data.loading import data_format, has_splits, load_task_data
from comp.errors import CompExportError
from comp.metrics.vqa_accuracy import vqa_accuracy


def picture(path: Path, colour: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), colour).save(path, "JPEG")  # NLVR2 also has JPEG files named .png


def lines(path: Path, *entries: object) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return path


def colour(image: Image.Image) -> tuple[bool, bool, bool]:
    """Return which of red, green and blue are bright."""
    red, green, blue = (value > 128 for value in image.getpixel((4, 3)))
    return red, green, blue


# --- NLVR2 ---------------------------------------------------------------------------------------


def official(identifier: str = "dev-850-0-0", **changes: object) -> dict[str, object]:
    """A line with the keys of the published files."""
    return {
        "sentence": "An image contains more than one cup.",
        "left_url": "https://example.org/left.jpg",
        "right_url": "https://example.org/right.jpg",
        "writer": "61",
        "validation": [["28", "False"]],
        "extra_validations": {"154": "False"},
        "synset": "cup",
        "query": "some cups38",
        "label": "False",
        "identifier": identifier,
    } | changes


@pytest.fixture
def nlvr2(tmp_path: Path) -> Path:
    folder = tmp_path / "dev"
    picture(folder / "dev-850-0-img0.png", "red")
    picture(folder / "dev-850-0-img1.png", "blue")
    return folder


def test_nlvr2_is_read(nlvr2: Path, tmp_path: Path) -> None:
    """Two sentences of one pair share its pictures; left comes first."""
    path = lines(
        tmp_path / "dev.json", official(), official("dev-850-0-1", label="True", sentence="two.")
    )
    data = load_task_data("statement", path, nlvr2)
    assert [(e.statement, e.answer) for e in data] == [
        ("An image contains more than one cup.", False),
        ("two.", True),
    ]
    for example in data:
        assert [colour(image) for image in example.images] == [
            (True, False, False),
            (False, False, True),
        ]


def test_nlvr2_training_pictures_are_read_from_numbered_folders(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    picture(folder / "61" / "train-1-0-img0.png", "red")
    picture(folder / "61" / "train-1-0-img1.png", "blue")
    picture(folder / "train-2-3-img0.png", "lime")
    picture(folder / "train-2-3-img1.png", "red")
    path = lines(
        tmp_path / "train.json",
        official("train-1-0-0", directory=61),
        official("train-2-3-0", directory=7),  # unpacked flat
    )
    data = load_nlvr2(path, folder)
    assert [colour(e.images[0]) for e in data] == [(True, False, False), (False, True, False)]
    path = lines(tmp_path / "train.json", official("train-9-0-0", directory=61))
    with pytest.raises(CompExportError, match=r"no image 'train-9-0-img0\.png' in .* or its 61"):
        load_nlvr2(path, folder)


def test_own_statements_are_read(nlvr2: Path, tmp_path: Path) -> None:
    names = ["dev-850-0-img1.png", "dev-850-0-img0.png"]
    path = lines(
        tmp_path / "mine.jsonl",
        {"images": names, "statement": "blue first", "label": True},
        {"images": names, "statement": "red first", "label": "false"},
    )
    data = load_task_data("statement", path, nlvr2)
    assert [(e.statement, e.answer) for e in data] == [("blue first", True), ("red first", False)]
    assert colour(data[0].images[0]) == (False, False, True)
    assert [e.answer for e in data[1:]] == [False]


def own(**changes: object) -> dict[str, object]:
    names = ["dev-850-0-img0.png", "dev-850-0-img1.png"]
    return {"images": names, "statement": "they differ", "label": True} | changes


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (official("dev-850-0"), "identifier 'dev-850-0' is not split-set-pair-sentence"),
        (official("dev-851-0-0"), r"no image 'dev-851-0-img0\.png'"),
        (official("../dev-1-0-0"), r"leads out of"),
        (official(identifier=850), "'identifier' is 850"),
        (official(sentence=""), "'sentence' is empty"),
        (official(label="Maybe"), "label is 'Maybe': write true or false"),
        (official(label=1), "label is 1: write true or false"),
        (official(label=None), "label is None"),
        (own(images=["dev-850-0-img0.png"]), "1 images: a statement is about two"),
        (own(images=["dev-850-0-img0.png"] * 3), "3 images: a statement is about two"),
        (own(images=["x.png", "y.png"]), r"no image 'x\.png'"),
        (own(images=["dev-850-0-img0.png", "y.png"]), r"no image 'y\.png'"),
        (own(images="dev-850-0-img0.png"), "'images' is 'dev-850-0-img0.png'"),
        (own(images=[1, 2]), "'images' is"),
        (own(statement=None), "'statement' is None"),
        ({"sentence": "?"}, "'identifier' is None"),
    ],
)
def test_bad_statements_are_refused(
    nlvr2: Path, tmp_path: Path, entry: object, message: str
) -> None:
    path = lines(tmp_path / "dev.json", official(), entry)
    with pytest.raises(CompExportError, match=message) as failure:
        load_task_data("statement", path, nlvr2)
    assert "dev.json, line 2" in str(failure.value)


def test_a_file_without_statements_is_refused(nlvr2: Path, tmp_path: Path) -> None:
    with pytest.raises(CompExportError, match="holds no statement"):
        load_nlvr2(lines(tmp_path / "dev.json"), nlvr2)


def test_pictures_of_a_pair_are_opened_on_access(nlvr2: Path, tmp_path: Path) -> None:
    (nlvr2 / "dev-851-0-img0.png").write_bytes(b"nothing")
    picture(nlvr2 / "dev-851-0-img1.png")
    data = load_nlvr2(lines(tmp_path / "dev.json", official(), official("dev-851-0-0")), nlvr2)
    assert len(data) == 2
    with pytest.raises(CompExportError, match=r"dev\.json, line 2: image .*dev-851-0-img0\.png"):
        data[1]


# --- VQAv2 ---------------------------------------------------------------------------------------

QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"
ANNOTATIONS = "v2_mscoco_val2014_annotations.json"


def questions_file(**changes: object) -> dict[str, Any]:
    return {
        "info": {"version": "2.0"},
        "task_type": "Open-Ended",
        "data_type": "mscoco",
        "license": {},
        "data_subtype": "val2014",
        "questions": [
            {"image_id": 42, "question": "How many dogs?", "question_id": 42000},
            {"image_id": 42, "question": "Is it day?", "question_id": 42001},
        ],
    } | changes


def annotation(question: int, commonest: str, given: list[str], kind: str) -> dict[str, Any]:
    return {
        "question_type": "how many",
        "multiple_choice_answer": commonest,
        "answers": [
            {"answer": answer, "answer_confidence": "yes", "answer_id": number}
            for number, answer in enumerate(given, start=1)
        ],
        "image_id": 42,
        "answer_type": kind,
        "question_id": question,
    }


def annotations_file(**changes: object) -> dict[str, Any]:
    return {
        "data_type": "mscoco",
        "data_subtype": "val2014",
        "annotations": [
            annotation(42001, "yes", ["yes"] * 10, "yes/no"),
            annotation(42000, "2", ["2"] * 7 + ["two", "3", "3"], "number"),
        ],
    } | changes


@pytest.fixture
def vqav2(tmp_path: Path) -> Path:
    picture(tmp_path / "COCO_val2014_000000000042.jpg")
    (tmp_path / QUESTIONS).write_text(json.dumps(questions_file()))
    (tmp_path / ANNOTATIONS).write_text(json.dumps(annotations_file()))
    return tmp_path


def test_vqav2_is_read(vqav2: Path) -> None:
    """Answers are matched by question id, in any order, and are scored officially."""
    data = load_task_data("question", vqav2 / QUESTIONS)
    assert [(e.question, e.answer, e.kind) for e in data] == [
        ("How many dogs?", "2", "number"),
        ("Is it day?", "yes", "yes/no"),
    ]
    assert data[0].image.size == (8, 6)
    assert data[0].answers == ("2",) * 7 + ("two", "3", "3")
    assert vqa_accuracy("two", data[0].answers) == 1.0
    # Two people agree: each is left out once, and then one of the others counts.
    assert vqa_accuracy("3", data[0].answers) == pytest.approx((8 * 2 / 3 + 2 * 1 / 3) / 10)


def test_vqav2_pictures_are_read_from_the_folder_of_their_split(vqav2: Path) -> None:
    coco = vqav2 / "coco"
    picture(coco / "val2014" / "COCO_val2014_000000000042.jpg", "blue")
    data = load_task_data("question", vqav2 / QUESTIONS, coco)
    assert colour(data[1].image) == (False, False, True)
    (vqav2 / "other").mkdir()
    with pytest.raises(CompExportError, match=r"COCO_val2014_000000000042\.jpg.* or its val2014"):
        load_task_data("question", vqav2 / QUESTIONS, vqav2 / "other")


def test_vqav2_annotations_can_be_given(vqav2: Path) -> None:
    (vqav2 / "elsewhere").mkdir()
    moved = (vqav2 / ANNOTATIONS).rename(vqav2 / "elsewhere" / "answers.json")
    assert len(load_vqav2(vqav2 / QUESTIONS, moved)) == 2
    with pytest.raises(CompExportError, match=rf"no annotations .*{ANNOTATIONS}: put them next to"):
        load_task_data("question", vqav2 / QUESTIONS)
    renamed = (vqav2 / QUESTIONS).rename(vqav2 / "mine.json")
    with pytest.raises(CompExportError, match=rf"name it as VQAv2 does, {QUESTIONS}"):
        load_task_data("question", renamed)


def test_vqav2_test_splits_have_no_answers(vqav2: Path) -> None:
    """The error names the split, not the annotations that cannot exist."""
    for subtype in ("test2015", "test-dev2015"):
        path = vqav2 / f"v2_OpenEnded_mscoco_{subtype}_questions.json"
        path.write_text(json.dumps(questions_file(data_subtype=subtype)))
        with pytest.raises(CompExportError, match=f"of {subtype}, whose answers are not public"):
            load_task_data("question", path)


def test_vqav2_empty_answers_are_skipped_with_a_warning(
    vqav2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """VQA's authors remove articles, which leaves the answer "a" empty."""
    empty = annotation(42001, "", [""] * 10, "other")
    both = annotations_file(annotations=[annotation(42000, "2", ["2"] * 9 + [""], "number"), empty])
    (vqav2 / ANNOTATIONS).write_text(json.dumps(both))
    data = load_task_data("question", vqav2 / QUESTIONS)
    assert [e.question for e in data] == ["How many dogs?"]
    assert "left out 1 of 2 questions" in capsys.readouterr().err
    (vqav2 / ANNOTATIONS).write_text(
        json.dumps(annotations_file(annotations=[empty, empty | {"question_id": 42000}]))
    )
    with pytest.raises(CompExportError, match="holds no question with an answer"):
        load_task_data("question", vqav2 / QUESTIONS)


def question(**changes: object) -> dict[str, Any]:
    return questions_file(questions=[questions_file()["questions"][0] | changes])


def answer(**changes: object) -> dict[str, Any]:
    return annotations_file(annotations=[annotations_file()["annotations"][1] | changes])


@pytest.mark.parametrize(
    ("questions", "annotations", "message"),
    [
        (questions_file(data_subtype=None), annotations_file(), "'data_subtype' is None"),
        (
            questions_file(),
            annotations_file(data_subtype="train2014"),
            "'train2014', the questions of 'val2014'",
        ),
        (questions_file(), {"data_subtype": "val2014"}, "no list 'annotations'"),
        (questions_file(), answer(), r"question 2 \(id 42001\) has no annotation"),
        (
            questions_file(),
            annotations_file(annotations=[7]),
            "annotation 1: 'question_id' is None",
        ),
        (questions_file(questions=[]), annotations_file(), "holds no question"),
        (question(question_id="42000"), answer(), "question 1: 'question_id' is '42000'"),
        (question(image_id=-1), answer(), "'image_id' is -1"),
        (question(image_id=43), answer(), "about image 43, its annotation about 42"),
        (question(question=" "), answer(), r"question 1 \(id 42000\): 'question' is empty"),
        (question(), answer(multiple_choice_answer=2), "'multiple_choice_answer' is 2"),
        (question(), answer(answers=[]), "has no answers"),
        (question(), answer(answers=[{"answer": 2}]), "an answer is 2"),
        (question(), answer(answers=["2"]), "an answer is None"),
        (
            question(image_id=43),
            answer(image_id=43),
            r"question 1 \(id 42000\): no image 'COCO_val2014_000000000043\.jpg'",
        ),
    ],
)
def test_damaged_vqav2_is_refused(
    vqav2: Path, questions: object, annotations: object, message: str
) -> None:
    (vqav2 / QUESTIONS).write_text(json.dumps(questions))
    (vqav2 / ANNOTATIONS).write_text(json.dumps(annotations))
    with pytest.raises(CompExportError, match=message):
        load_task_data("question", vqav2 / QUESTIONS)


# --- The format of a file, and its task ----------------------------------------------------------

KARPATHY = {"images": [{"filename": "x.jpg", "split": "test", "sentences": [{"raw": "a fox"}] * 2}]}
CONTENTS: dict[str, object] = {
    "conversations": [{"id": "1", "image": "x.jpg", "conversations": []}],
    "vqav2": questions_file(),
    "annotations": annotations_file(),
    "karpathy": KARPATHY,
    "statements": official(),
    "lines": {"image": "x.jpg", "caption": "a fox", "question": "what?", "answer": "fox"},
}


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["data.json", "data.jsonl", "data"])
@pytest.mark.parametrize("result", CONTENTS)
def test_the_format_follows_from_the_content(
    tmp_path: Path, result: str, name: str, indent: int | None
) -> None:
    path = tmp_path / name
    path.write_text("\n" + json.dumps(CONTENTS[result], indent=indent))
    assert data_format(path) == result
    assert has_splits(path) == (result == "karpathy")


@pytest.mark.parametrize(
    ("task", "result", "message"),
    [
        ("statement", "conversations", "is LLaVA-Instruct JSON, not data for a statement task"),
        ("statement", "lines", "give NLVR2's JSON lines"),
        ("retrieval", "conversations", "give Karpathy's JSON, or JSONL of image, caption"),
        ("caption", "vqav2", "is VQAv2's questions"),
        ("question", "karpathy", "is Karpathy's JSON of captions, not data for a question task"),
        ("question", "statements", "is NLVR2's statements"),
        ("question", "annotations", "VQAv2's annotations.*: give the file of the questions"),
    ],
)
def test_a_file_of_another_task_is_refused(
    tmp_path: Path, task: Any, result: str, message: str
) -> None:
    picture(tmp_path / "x.jpg")
    path = lines(tmp_path / "data", CONTENTS[result])
    with pytest.raises(CompExportError, match=message):
        load_task_data(task, path)
    with pytest.raises(CompExportError, match=message):
        load_task_data(task, path, split="test")


def test_a_split_is_refused_for_files_without_splits(tmp_path: Path) -> None:
    picture(tmp_path / "x.jpg")
    path = lines(tmp_path / "data", KARPATHY)
    for task in ("caption", "retrieval"):
        (example,) = load_task_data(task, path, split="test")
        assert (example.answer, example.answers) == ("a fox", ("a fox", "a fox"))
        with pytest.raises(CompExportError, match="choose train, validation or test"):
            load_task_data(task, path)
    single = lines(tmp_path / "lines", CONTENTS["lines"])
    with pytest.raises(CompExportError, match="has no splits: leave out 'test'"):
        load_task_data("caption", single, split="test")
    assert load_task_data("caption", single)[0].answer == "a fox"
    assert load_task_data("question", single)[0].answer == "fox"
