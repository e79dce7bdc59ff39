"""A user's own visual questions: LLaVA-Instruct JSON with an image folder, or plain JSONL.

Records are read and checked at once; images are opened when an example is asked for.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, overload

from comp.console import say
from comp.data.example import Example
from comp.errors import CompExportError
from comp.images import read_image

IMAGE_MARK = "<image>"
ASKS, ANSWERS = ("human", "user"), ("gpt", "assistant")


@dataclass(frozen=True)
class Record:
    """One question about one image file, and where it was found (for errors)."""

    image: Path
    question: str
    answer: str
    kind: str
    where: str


class UserData(Sequence[Example]):
    """Records as examples; an image is opened (and may be refused) when it is asked for."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = tuple(records)

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> "UserData": ...
    def __getitem__(self, index: int | slice) -> "Example | UserData":
        if isinstance(index, slice):
            return UserData(self.records[index])
        record = self.records[index]
        try:
            image = read_image(record.image)
        except CompExportError as error:
            raise CompExportError(f"{record.where}: {error}") from error
        return Example(image, record.question, record.answer, record.kind)


def load_examples(path: Path, image_folder: Path | None = None, captions: bool = False) -> UserData:
    """Load a user's questions.

    ``*.jsonl`` holds one object a line: ``image``, ``question``, ``answer`` and, if wanted,
    ``kind``. ``*.json`` is LLaVA-Instruct: a list of ``{id, image, conversations: [{from, value},
    ...]}``; each turn of a conversation becomes an example of its own, asked without the turns
    before it. Records without an image are left out, and their number is said on stderr.

    Captions, for retrieval, are JSONL with ``image`` and ``caption``; the caption is the example's answer.
    (Karpathy's JSON, which has splits of its own, is read by ``comp.data.karpathy``.)

    Args:
        path: the file.
        image_folder: where image names start; the folder of ``path`` when left out.
        captions: read captions, not questions.

    Raises:
        CompExportError: names the file, the line or record, and what to mend.
    """
    folder = (path.parent if image_folder is None else image_folder).resolve()
    if not folder.is_dir():
        raise CompExportError(
            f"no image folder {folder}: pass the folder that image names start in"
        )
    readers = {".jsonl": _read_captions if captions else _read_lines}
    if not captions:
        readers[".json"] = _read_conversations
    reader = readers.get(path.suffix.lower())
    if reader is None:
        if captions:
            raise CompExportError(
                f"{path}: unknown kind of data file: captions are .jsonl (image, caption a line)"
            )
        raise CompExportError(
            f"{path}: unknown kind of data file: name it .json (LLaVA-Instruct) or .jsonl "
            "(image, question, answer a line)"
        )
    records = list(reader(path, folder))
    if not records:
        wanted = "caption of" if captions else "question about"
        raise CompExportError(f"{path} holds no {wanted} an image: nothing to learn from it")
    return UserData(records)


def _read_lines(path: Path, folder: Path) -> Iterator[Record]:
    for found, where in _lines(path, "image, question, answer"):
        yield Record(
            image=_image(found, folder, where),
            question=_string(found, "question", where),
            answer=_string(found, "answer", where),
            kind=_string(found, "kind", where) if "kind" in found else "question",
            where=where,
        )


def _read_captions(path: Path, folder: Path) -> Iterator[Record]:
    for found, where in _lines(path, "image, caption"):
        image, caption = _image(found, folder, where), _string(found, "caption", where)
        yield Record(image, "", caption, "caption", where)


def _lines(path: Path, keys: str) -> Iterator[tuple[dict[str, Any], str]]:
    """The objects of a JSONL file, and where each stands."""
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except ValueError as error:
            raise CompExportError(f"{where} is not JSON ({error}): one object a line") from error
        if not isinstance(found, dict):
            raise CompExportError(f"{where} is no object: write {{{keys}}} on each line")
        yield found, where


def _read_conversations(path: Path, folder: Path) -> Iterator[Record]:
    try:
        found = json.loads(read_text(path))
    except ValueError as error:
        raise CompExportError(
            f"{path} is not JSON ({error}): LLaVA-Instruct is one list; for an object a line, name "
            "the file .jsonl"
        ) from error
    if not isinstance(found, list):
        raise CompExportError(f"{path} is no list of conversations, as LLaVA-Instruct has it")
    without_image = 0
    for number, entry in enumerate(found, start=1):
        where = f"{path}, record {number}"
        if not isinstance(entry, dict):
            raise CompExportError(f"{where} is no object: write {{id, image, conversations}}")
        if "id" in entry:
            where += f" (id {entry['id']})"
        if "image" not in entry:
            without_image += 1
            continue
        image = _image(entry, folder, where)
        for question, answer in _turns(entry.get("conversations"), where):
            yield Record(image, question, answer, "conversation", where)
    if without_image:
        say(f"{path}: left out {without_image} of {len(found)} records, which have no image")


def _turns(conversations: object, where: str) -> Iterator[tuple[str, str]]:
    """Question and answer of each turn, the image mark taken off."""
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
        yield _not_empty(question.replace(IMAGE_MARK, ""), "question", where), answer


def _said(turn: object, speakers: tuple[str, ...], where: str) -> str:
    if not isinstance(turn, dict) or turn.get("from") not in speakers:
        raise CompExportError(
            f"{where}: expected a turn {{from: {speakers[0]}, value: text}}: "
            "human and gpt take turns, human first"
        )
    return _string(turn, "value", where)


def _image(entry: Mapping[str, Any], folder: Path, where: str) -> Path:
    return image_file(_string(entry, "image", where), folder, where)


def image_file(name: str, folder: Path, where: str) -> Path:
    """An image's file in a folder that is resolved; names may not leave it, by ``..`` or by a link."""
    path = (folder / name).resolve()
    if PurePosixPath(name).is_absolute() or not path.is_relative_to(folder):
        raise CompExportError(
            f"{where}: image {name!r} leads out of the image folder {folder}: name a file inside it"
        )
    if not path.is_file():
        raise CompExportError(
            f"{where}: no image {name!r} in {folder}: pass the folder that image names start in"
        )
    return path


def _string(entry: Mapping[str, Any], key: str, where: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str):
        raise CompExportError(f"{where}: {key!r} is {value!r}: give it as text")
    return _not_empty(value, key, where)


def _not_empty(text: str, key: str, where: str) -> str:
    if not text.strip():
        raise CompExportError(f"{where}: {key!r} is empty: give it as text")
    return text.strip()


def read_text(path: Path) -> str:
    """A data file's text, in UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CompExportError(f"cannot read {path}: {error.strerror}; name a data file") from error
    except UnicodeDecodeError as error:
        raise CompExportError(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from error
