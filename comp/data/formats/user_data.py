"""Read a user's own questions or captions: LLaVA-Instruct JSON with an image folder, or plain JSONL.

Image names are relative to the given folder, by default that of the file. Every reader raises
``CompExportError``, which names the file, the line or record, and the remedy.
"""

from collections.abc import Iterator
from pathlib import Path

from comp.data.example import Example
from comp.data.formats.records import (
    ImageFolder,
    ImageRecord,
    Records,
    image_file,
    image_folder,
    json_lines,
    not_empty,
    read_text,
    text_of,
)
from comp.errors import CompExportError
from comp.utils.console import say
from comp.utils.json_files import parse_json

IMAGE_MARK = "<image>"
ASKS, ANSWERS = ("human", "user"), ("gpt", "assistant")


def load_conversations(path: Path, images: Path | ImageFolder | None = None) -> Records[Example]:
    """Load LLaVA-Instruct: a JSON list of ``{id, image, conversations: [{from, value}, ...]}``.

    Each turn of a conversation becomes an example, without the turns before it. Records without an image
    are skipped, and their number is printed on stderr.
    """
    records = list(_conversations(path, image_folder(path, images)))
    if not records:
        raise CompExportError(f"{path} holds no question about an image: nothing to learn from it")
    return Records(records)


def load_questions(path: Path, images: Path | ImageFolder | None = None) -> Records[Example]:
    """Load JSONL with ``image``, ``question``, ``answer`` and optionally ``kind`` on each line."""
    folder = image_folder(path, images)
    records = [
        ImageRecord(
            image=image_file(text_of(entry, "image", where), folder, where),
            question=text_of(entry, "question", where),
            answer=text_of(entry, "answer", where),
            kind=text_of(entry, "kind", where) if "kind" in entry else "question",
            where=where,
        )
        for entry, where in json_lines(path, "image, question, answer")
    ]
    return Records(records)


def load_captions(path: Path, images: Path | ImageFolder | None = None) -> Records[Example]:
    """Load JSONL with ``image`` and ``caption`` on each line; the caption is the example's answer."""
    folder = image_folder(path, images)
    records = []
    for entry, where in json_lines(path, "image, caption"):
        image = image_file(text_of(entry, "image", where), folder, where)
        caption = text_of(entry, "caption", where)
        records.append(ImageRecord(image, "", caption, "caption", where))
    return Records(records)


def _conversations(path: Path, folder: ImageFolder) -> Iterator[ImageRecord]:
    content = parse_json(read_text(path), str(path), "LLaVA-Instruct is one list")
    if not isinstance(content, list):
        raise CompExportError(f"{path} is no list of conversations, as LLaVA-Instruct has it")
    without_image = 0
    for number, entry in enumerate(content, start=1):
        where = f"{path}, record {number}"
        if not isinstance(entry, dict):
            raise CompExportError(f"{where} is no object: write {{id, image, conversations}}")
        if "id" in entry:
            where += f" (id {entry['id']})"
        if "image" not in entry:
            without_image += 1
            continue
        image = image_file(text_of(entry, "image", where), folder, where)
        for question, answer in _turns(entry.get("conversations"), where):
            yield ImageRecord(image, question, answer, "conversation", where)
    if without_image:
        say(f"{path}: left out {without_image} of {len(content)} records, which have no image")


def _turns(conversations: object, where: str) -> Iterator[tuple[str, str]]:
    """Yield question and answer of each turn, without the image mark."""
    if not isinstance(conversations, list) or not conversations or len(conversations) % 2:
        raise CompExportError(
            f"{where}: conversations must be a list of question and answer in turn"
        )
    for place in range(0, len(conversations), 2):
        question = _said(conversations[place], ASKS, where)
        answer = _said(conversations[place + 1], ANSWERS, where)
        marks = question.count(IMAGE_MARK)
        if marks > (place == 0):
            raise CompExportError(
                f"{where}: {IMAGE_MARK} stands {marks} times in turn {place // 2 + 1}: put it "
                "once, in the first turn, for the record's one image"
            )
        yield not_empty(question.replace(IMAGE_MARK, ""), "question", where), answer


def _said(turn: object, speakers: tuple[str, ...], where: str) -> str:
    if not isinstance(turn, dict) or turn.get("from") not in speakers:
        raise CompExportError(
            f"{where}: expected a turn {{from: {speakers[0]}, value: text}}: "
            "human and gpt take turns, human first"
        )
    return text_of(turn, "value", where)
