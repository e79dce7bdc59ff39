"""Read VQAv2's questions and annotations as published, with images of COCO (https://visualqa.org/download.html).

Questions: ``{"data_subtype": "val2014", "questions": [{"question_id", "image_id", "question"}, ...]}``.
Annotations: ``{"data_subtype": ..., "annotations": [{"question_id", "image_id", "multiple_choice_answer",
"answer_type", "answers": [{"answer", ...}, ...]}, ...]}``.
Images: ``COCO_val2014_000000000042.jpg``, in the image folder or in its folder ``val2014``.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from comp.data.example import Example
from comp.data.formats.records import (
    ImageFolder,
    ImageRecord,
    Records,
    image_file,
    image_folder,
    read_list,
    text_of,
)
from comp.errors import CompExportError
from comp.utils.console import say

Annotations = Mapping[int, Mapping[str, Any]]


def load_vqav2(
    questions: Path, annotations: Path | None = None, images: Path | ImageFolder | None = None
) -> Records[Example]:
    """Load questions with the most common answer of the annotators; ``answers`` are all ten.

    The kind of an example is its ``answer_type`` (``yes/no``, ``number``, ``other``), by which VQA's authors
    report results. Questions with an empty most common answer (an article, removed) are skipped, and their
    number is printed on stderr.

    Args:
        questions: ``v2_OpenEnded_mscoco_val2014_questions.json``.
        annotations: by default ``v2_mscoco_val2014_annotations.json`` in the folder of the questions.
        images: the folder with the images or their folder; by default that of ``questions``.

    Raises:
        CompExportError: a file is incomplete, an image is missing, or it is a test split (no answers).
    """
    folder = image_folder(questions, images)
    entries, whole = read_list(questions, "questions", "VQAv2")
    subtype = text_of(whole, "data_subtype", str(questions))
    if subtype.startswith("test"):
        raise CompExportError(
            f"{questions} is of {subtype}, whose answers are not public: nothing to score; use val2014"
        )
    by_question = _annotations(annotations or annotations_beside(questions), subtype)
    records = [
        record
        for record in _records(questions, entries, subtype, by_question, folder)
        if record.answer
    ]
    if not records:
        raise CompExportError(f"{questions} holds no question with an answer")
    if len(records) < len(entries):
        left = len(entries) - len(records)
        say(f"{questions}: left out {left} of {len(entries)} questions, whose answer is empty")
    return Records(records)


def annotations_beside(questions: Path) -> Path:
    """Return the file of the annotations, by the official name of the file of the questions.

    Raises:
        CompExportError: the questions have another name, or there is no such file.
    """
    name = questions.name
    if "OpenEnded_" not in name or "_questions" not in name:
        raise CompExportError(
            f"cannot derive the name of the annotations of {questions}: name it as VQAv2 does, "
            "v2_OpenEnded_mscoco_val2014_questions.json"
        )
    path = questions.with_name(name.replace("OpenEnded_", "").replace("_questions", "_annotations"))
    if not path.is_file():
        raise CompExportError(f"no annotations {path}: put them next to {name}")
    return path


def _annotations(path: Path, subtype: str) -> Annotations:
    entries, whole = read_list(path, "annotations", "VQAv2")
    if whole.get("data_subtype") != subtype:
        raise CompExportError(
            f"{path} is of {whole.get('data_subtype')!r}, the questions of {subtype!r}: "
            "use the annotations of the same split"
        )
    return {
        _number(entry, "question_id", f"{path}, annotation {number}"): entry
        for number, entry in enumerate(entries, start=1)
    }


def _records(
    path: Path, entries: list[Any], subtype: str, annotations: Annotations, folder: ImageFolder
) -> Iterator[ImageRecord]:
    images: dict[int, Path] = {}  # by image id: several questions are about one image
    for number, entry in enumerate(entries, start=1):
        where = f"{path}, question {number}"
        identity, image = _number(entry, "question_id", where), _number(entry, "image_id", where)
        where += f" (id {identity})"
        annotation = annotations.get(identity)
        if annotation is None:
            raise CompExportError(f"{where} has no annotation: use those of the same release")
        if annotation.get("image_id", image) != image:
            raise CompExportError(
                f"{where} is about image {image}, its annotation about {annotation['image_id']}: "
                "use the annotations of the same release"
            )
        if image not in images:
            name = f"COCO_{subtype}_{image:012d}.jpg"
            images[image] = image_file(name, folder, where, subtype)
        commonest, answers = _answers(annotation, where)
        kind = annotation.get("answer_type")
        yield ImageRecord(
            image=images[image],
            question=text_of(entry, "question", where),
            answer=commonest,
            kind=kind if isinstance(kind, str) and kind else "question",
            where=where,
            answers=answers,
        )


def _answers(annotation: Mapping[str, Any], where: str) -> tuple[str, tuple[str, ...]]:
    commonest, given = annotation.get("multiple_choice_answer"), annotation.get("answers")
    if not isinstance(commonest, str):
        raise CompExportError(
            f"{where}: 'multiple_choice_answer' is {commonest!r}: give it as text"
        )
    if not isinstance(given, list) or not given:
        raise CompExportError(f"{where} has no answers: they are [{{'answer': text}}, ...]")
    answers: list[str] = []
    for each in given:
        answer = each.get("answer") if isinstance(each, dict) else None
        if not isinstance(answer, str):
            raise CompExportError(f"{where}: an answer is {answer!r}: give it as text")
        answers.append(answer)
    return commonest.strip(), tuple(answers)


def _number(entry: object, key: str, where: str) -> int:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise CompExportError(f"{where}: {key!r} is {value!r}: give a number, as VQAv2 has it")
    return value
