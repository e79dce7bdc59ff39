"""Text files are UTF-8 in every locale, with or without a byte order mark."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from comp.checkpoints.locate import read_config
from comp.data.loading import load_task_data
from comp.errors import CompExportError
from serve.study.loading import load_study

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("comp", "export", "serve", "demo", "benchmarks")
# Functions that open text, and the position of their mode.
OPENS = {"read_text": None, "write_text": None, "open": 0, "fdopen": 1}


def without_encoding(tree):
    """Yield the lines that open a text file without an encoding."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        method = isinstance(function, ast.Attribute)
        name = function.attr if method else getattr(function, "id", "")
        if name not in OPENS or (name.endswith("_text") and not method):
            continue
        if name == "read_text" and _is_function_of_ours(function):
            continue
        if name == "write_text" and getattr(function.value, "id", "") == "formatter":
            continue  # click's, of a help
        arguments = {keyword.arg: keyword.value for keyword in node.keywords}
        place = OPENS[name] if method else 1
        mode = arguments.get("mode") or (
            node.args[place] if place is not None and len(node.args) > place else None
        )
        modes = mode.value if isinstance(mode, ast.Constant) else ""
        if name in ("open", "fdopen") and (_other_open(function) or "b" in str(modes)):
            continue
        if "encoding" not in arguments:
            yield node.lineno


def _is_function_of_ours(function):
    return isinstance(function.value, ast.Name) and function.value.id == "json_files"


def _other_open(function):
    """Whether it is ``Image.open``, ``os.open`` or the like, which read no text."""
    return (
        isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Name)
        and (
            function.value.id in ("os", "tarfile", "zipfile", "webbrowser", "ServerSocket")
            or function.value.id[0].isupper()
        )
    )


def test_every_text_file_is_opened_with_an_encoding():
    result = [
        f"{path.relative_to(ROOT)}:{line}"
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for line in without_encoding(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert result == []


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("p.read_text()", [1]),
        ("p.write_text(x)", [1]),
        ("p.open()", [1]),
        ("p.open('a')", [1]),
        ("open(p, 'w')", [1]),
        ("p.open('rb')", []),
        ("open(p, mode='wb')", []),
        ("p.read_text(encoding='utf-8')", []),
        ("Image.open(p)", []),
        ("os.open(p, os.O_RDONLY)", []),
    ],
)
def test_the_search_recognises_opened_text_files(code, lines):
    assert list(without_encoding(ast.parse(code))) == lines


MARK = b"\xef\xbb\xbf"
QUESTION = '{"image": "a.png", "question": "né?", "answer": "oui"}\n'
TALK = '[{"image": "a.png", "conversations": [{"from": "human", "value": "né?"}, '
TALK += '{"from": "gpt", "value": "oui"}]}]'
KARPATHY = '{"images": [{"filename": "a.png", "split": "train", "sentences": [{"raw": "né"}]}]}'
STATEMENT = '{"images": ["a.png", "a.png"], "statement": "né", "label": true}\n'
FILES = [
    ("question", "a.jsonl", QUESTION, None),
    ("question", "a.json", TALK, None),
    ("caption", "a.json", KARPATHY, "train"),
    ("statement", "a.jsonl", STATEMENT, None),
]


@pytest.mark.parametrize(("task", "name", "content", "split"), FILES)
def test_data_with_a_byte_order_mark_is_read_alike(tmp_path, task, name, content, split):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    path = tmp_path / name
    read = []
    for mark in (b"", MARK):
        path.write_bytes(mark + content.encode())
        read.append(load_task_data(task, path, None, split).records)
    assert read[0] == read[1]
    path.write_text(content, encoding="utf-16")
    with pytest.raises(CompExportError, match=rf"{name} is UTF-16 text: save it as UTF-8"):
        load_task_data(task, path, None, split)


def test_a_study_with_a_byte_order_mark_is_read(tmp_path):
    content = next((ROOT / "docs" / "studies").glob("*.toml")).read_bytes()
    path = tmp_path / "study.toml"
    path.write_bytes(content)
    plain = load_study(path)
    path.write_bytes(MARK + content)
    assert load_study(path) == plain
    path.write_text(content.decode(), encoding="utf-16")
    with pytest.raises(CompExportError, match=r"study\.toml is UTF-16 text: save it as UTF-8"):
        load_study(path)


def test_a_config_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "config.json").write_bytes(MARK + '{"model_type": "é"}'.encode())
    assert read_config(tmp_path) == {"model_type": "é"}


def test_a_config_is_read_as_utf_8_in_another_locale(tmp_path):
    """Simulate a machine whose locale is Latin-1."""
    (tmp_path / "config.json").write_text('{"model_type": "é"}', encoding="utf-8")
    code = "import sys; from pathlib import Path; from comp.checkpoints.locate import read_config; "
    code += "print(ascii(read_config(Path(sys.argv[1]))['model_type']))"
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", code, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
    )
    assert done.stdout == "'\\xe9'\n"
