"""Untrusted JSON files: what is read, and what is refused by name."""

import codecs
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comp.errors import CompExportError
from comp.utils.json_files import MAX_DEPTH, parse_json, read_json, read_object, read_text

REMEDY = "fetch it again"
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inside: st.lists(inside) | st.dictionaries(st.text(), inside),
    max_leaves=30,
)


@given(VALUES, st.booleans())
def test_any_value_survives_write_and_read(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse_json(text, "here", REMEDY) == value


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path: Path, mark: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(mark + '{"name": "Käse"}'.encode())
    assert read_object(path, REMEDY) == {"name": "Käse"}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "is not JSON"),
        ('{"a": {"b": [1, NaN]}}', "a.b[1] is NaN"),
        ('{"a": [{"b": -Infinity}]}', "a[0].b is -Infinity"),
        ('{"a": 1e999}', "a is 1e999"),
        ("9" * 5000, "is not JSON"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nested deeper than 64 levels"),
        ("[" * 100_000 + "]" * 100_000, "nested deeper than 64 levels"),
        (r'[{"answer": "\ud83d"}]', "[0].answer holds half of a surrogate pair"),
        (r'{"a\udc00": 1}', "a key of the whole holds half of a surrogate pair"),
    ],
)
def test_errors_are_named_with_their_place(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CompExportError) as refused:
        read_json(path, REMEDY)
    assert named in str(refused.value)
    assert str(path) in str(refused.value)
    assert str(refused.value).endswith(REMEDY)


def test_the_deepest_allowed_nesting_is_read() -> None:
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert json.dumps(parse_json(text, "here", REMEDY)) == text


def test_brackets_in_strings_do_not_count_as_nesting() -> None:
    assert parse_json(json.dumps("[" * 100), "here", REMEDY) == "[" * 100


def test_surrogate_pairs_are_read() -> None:
    assert parse_json(r'"\ud83d\ude00"', "here", REMEDY) == "\U0001f600"


@pytest.mark.parametrize("held", ["[]", "null", "3", '"text"', "true"])
def test_a_value_other_than_an_object_is_refused_by_its_type(tmp_path: Path, held: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(held, encoding="utf-8")
    with pytest.raises(CompExportError, match="not an object: fetch it again"):
        read_object(path, REMEDY)


def test_special_files_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "pointer").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 123\n",
        encoding="utf-8",
    )
    (tmp_path / "latin").write_bytes('{"name": "Käse"}'.encode("latin-1"))
    for name, message in {
        "fifo": "is a FIFO, not a file",
        "folder": "is a directory, not a file",
        "missing": "No such file",
        "pointer": "is a Git LFS pointer, not the file itself",
        "latin": "is not UTF-8 text (byte 11)",
    }.items():
        with pytest.raises(CompExportError) as refused:
            read_text(tmp_path / name, REMEDY)
        assert message in str(refused.value)
    with pytest.raises(CompExportError, match="is a device, not a file"):
        read_text(Path("/dev/zero"), REMEDY)


def test_file_size_limits_depend_on_the_kind(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    path.write_text("[1, 2, 3]", encoding="utf-8")
    assert read_json(path, REMEDY, max_bytes=9) == [1, 2, 3]
    with pytest.raises(CompExportError, match="has 9 bytes, and 8 are the most"):
        read_json(path, REMEDY, max_bytes=8)
