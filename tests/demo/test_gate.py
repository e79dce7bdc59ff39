"""Attacks on a page over HTTP: refusals, messages, and that the next visitor is served."""

import json
import os
import re
import time
from itertools import cycle
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from comp.errors import CompExportError
from demo import comparison, gate, uploads
from demo.server import serve_page
from demo.uploads import Uploads, process_uploads
from tests.comp.data.test_images import png
from tests.demo.conftest import free_port
from tests.serve.random_llava import make_run

QUESTION = "what is at the top?"
META = {"_type": "gradio.FileData"}
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def url(dense_artifact, compressed_artifact, tmp_path_factory):
    path = make_run(tmp_path_factory.mktemp("gate"), dense_artifact, compressed_artifact)
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "DRAWING_SECONDS", 0.0)
        patch.setattr(gate, "SWEEP_SECONDS", 0.2)
        page = serve_page(path, "127.0.0.1", port, "cpu", threads=1, block=False)
        yield f"http://127.0.0.1:{port}"
        page.close()


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.png"
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def upload(url, data, name="own.png"):
    answer = httpx.post(f"{url}/gradio_api/upload", files={"files": (name, data)}, timeout=60)
    answer.raise_for_status()
    return answer.json()[0]


def call(url, *data, name="answer"):
    """Return the last event of a call, and its data."""
    place = f"{url}/gradio_api/call/{name}"
    body = json.dumps({"data": data})  # as Python writes it: NaN and half characters too
    begun = httpx.post(place, content=body, headers=JSON, timeout=60)
    if begun.status_code != 200:
        return str(begun.status_code), begun.text
    last = ("", "")
    with httpx.stream("GET", f"{place}/{begun.json()['event_id']}", timeout=60) as events:
        for line in events.iter_lines():
            kind, _, words = line.partition(": ")
            if kind == "event":
                last = (words, "")
            elif kind == "data" and words != "null":
                last = (last[0], words)
    return last


def is_served(url, own):
    """Whether a visitor with a picture of their own gets both answers."""
    path = upload(url, own.read_bytes())
    kind, words = call(url, {"path": path, "meta": META}, QUESTION, 1.0)
    return kind == "complete" and words.count('data-state=\\"done\\"') == 2


def test_files_of_the_server_are_not_opened(url, own, tmp_path):
    folder = process_uploads().folder
    secret = tmp_path / "secret.png"
    Image.new("RGB", (30, 20), (1, 2, 3)).save(secret)
    pipe, link, inner = tmp_path / "pipe.png", folder / "link.png", folder / "pipe.png"
    os.mkfifo(pipe)
    os.mkfifo(inner)
    link.symlink_to(secret)
    (folder / "empty").mkdir(exist_ok=True)
    sent = upload(url, own.read_bytes())
    relative = os.path.relpath(secret)
    before = psutil.Process().memory_info().rss
    names = [
        *(str(secret), relative, f"{folder}/../{secret.name}", f"{sent}/../../../x.png"),
        *("/dev/zero", "/dev/stdin", "/proc/self/environ", str(pipe), str(inner), str(link)),
        *(str(folder), str(folder / "empty"), str(folder / ".lock"), "", ".", "~/x.png"),
        *(os.path.relpath(sent), "http://127.0.0.1:9/x.png", "file:///etc/passwd", sent + "\0"),
        *("a" * 100_000, f"{folder}/{'b/' * 3000}x", 7, None, [sent], {"path": sent}),
    ]
    try:
        ways = cycle([{}, {"meta": META}, {"url": f"{url}/x.png", "is_stream": True}])
        for name, more in zip(names, ways, strict=False):
            kind, words = call(url, {"path": name, **more}, QUESTION, 1.0)
            assert kind == "error", name
            assert "upload the picture again" in words, (name, words)
            assert "data:image" not in words
        for more in ({}, {"meta": META}):
            for name in (str(secret), "/dev/zero", str(pipe)):
                assert call(url, {"path": name, **more}, QUESTION, 1.0)[0] == "error"
        assert is_served(url, own)
    finally:
        for path in (link, inner):
            path.unlink()
    assert psutil.Process().memory_info().rss - before < 200 * 2**20


def test_nothing_is_fetched_from_elsewhere(url, own, monkeypatch):
    from gradio import processing_utils

    asked_for = []

    async def fetch(address, **_):
        asked_for.append(address)
        raise AssertionError("a page asked another host")

    monkeypatch.setattr(processing_utils, "async_ssrf_protected_get", fetch)
    monkeypatch.setattr(processing_utils, "async_ssrf_protected_download", fetch)
    elsewhere = {"path": "https://example.com/a.png", "url": "https://example.com/a.png"}
    for data in (
        [{**elsewhere, "meta": META}, QUESTION, 1.0],
        [None, {**elsewhere, "meta": META}, 1.0],
        [None, QUESTION, {**elsewhere, "meta": META}],
        [{"url": "https://example.com/a.png", "meta": META}, QUESTION, 1.0],
    ):
        assert call(url, *data)[0] == "error"
    for path in (
        "file=https://example.com/a.png",
        "file/https://example.com/a.png",
        "proxy=https://x.hf.space/a",
    ):
        assert httpx.get(f"{url}/gradio_api/{path}", timeout=20).status_code in (403, 404)
    assert asked_for == []
    assert is_served(url, own)


def test_files_are_served_from_the_own_folder_only(url, own, tmp_path):
    folder = process_uploads().folder
    sent = upload(url, own.read_bytes())
    assert httpx.get(f"{url}/gradio_api/file={sent}").content == own.read_bytes()
    for path in (own, "/etc/passwd", "/dev/zero", folder / ".lock", folder, f"{sent}/../.."):
        answer = httpx.get(f"{url}/gradio_api/file={path}", timeout=20)
        assert answer.status_code == 403
        assert "is no picture of this page" in answer.json()["detail"]
    for path in ("monitoring", "pwa_icon/30000", "gradio_api/process_recording", "gradio_api/runs"):
        assert httpx.get(f"{url}/{path}").status_code == 404


def test_an_upload_stays_in_the_folder(url, own):
    folder = process_uploads().folder
    for name in ("../../../../tmp/up.png", "/etc/up.png", "a" * 500 + ".png", "ü €.png", ".lock"):
        path = Path(upload(url, own.read_bytes(), name))
        assert path.resolve().is_relative_to(folder)
        assert path.parent != folder


def test_uploads_other_than_pictures_are_named(url, own):
    """Errors give the visitor's file name, not the server's path."""
    for data, words in (
        (b"no picture at all", "is not a picture that can be read"),
        (png(8000, 5000), "is too large .8000x5000 pixels; 32 megapixels"),
        (png(70_000, 1), "is too large .70000x1 pixels"),
        (b"", "is not a picture that can be read"),
    ):
        kind, reply = call(url, {"path": upload(url, data, "mine.png")}, QUESTION, 1.0)
        assert kind == "error"
        assert re.search(f"image mine.png {words}", reply)
        assert str(process_uploads().folder) not in reply
    damaged = upload(url, png(60, 40)[:60])  # seen when it is decoded
    kind, reply = call(url, {"path": damaged}, QUESTION, 1.0)
    assert kind == "complete"
    assert reply.count('data-state=\\"ready\\"') == 2  # the cards are in their initial state
    assert is_served(url, own)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (["x", QUESTION, 1.0], "a picture is an upload"),
        ([[], QUESTION, 1.0], "a picture is an upload"),
        ([None, 7, 1.0], "a text is expected, not int"),
        ([None, ["a"], 1.0], "a text is expected, not list"),
        ([None, "a" * 40_000, 1.0], "a text of 40000 characters"),
        ([None, "a\ud800", 1.0], "half a character at place 1"),
        ([None, QUESTION, "1"], "is no number from 0.25 to 2"),
        ([None, QUESTION, 1e308], "is no number from 0.25 to 2"),
        ([None, QUESTION, -1], "is no number from 0.25 to 2"),
        ([None, QUESTION, True], "is no number from 0.25 to 2"),
        ([None, QUESTION, None], "is no number from 0.25 to 2"),
        ([None, QUESTION, float("nan")], "is no number from 0.25 to 2"),
        ([[{"path": "x"}] * 5000, QUESTION, 1.0], "a picture is an upload"),
    ],
)
def test_inputs_of_a_wrong_kind_are_named(url, data, words):
    kind, reply = call(url, *data)
    assert kind == "error"
    assert words in reply


def test_endless_requests_are_cut_off(url, own):
    before = psutil.Process().memory_info().rss
    place = f"{url}/gradio_api/call/answer"

    def stream():
        for _ in range(64):
            yield bytes(2**20)

    for body in (bytes(2**20), stream(), b"[" * 400_000, b'{"data": [' + b"[" * 200_000, b"\xff"):
        answer = httpx.post(place, content=body, headers=JSON, timeout=60)
        assert answer.status_code in (400, 413, 422)
        assert answer.json()["detail"]
    nested = {"data": [json.loads("[" * 900 + "]" * 900), QUESTION, 1.0]}
    assert httpx.post(place, json=nested, timeout=60).status_code < 500
    large = httpx.post(
        f"{url}/gradio_api/upload",
        files=[("files", ("a.png", bytes(40 * 2**20))) for _ in range(2)],
        timeout=120,
    )
    assert large.status_code == 413
    assert is_served(url, own)
    assert psutil.Process().memory_info().rss - before < 300 * 2**20


def test_size_of_uploads_is_limited(url, own, monkeypatch):
    monkeypatch.setattr(gate, "MAX_FOLDER_BYTES", 10)
    answer = httpx.post(f"{url}/gradio_api/upload", files={"files": ("a.png", b"a")})
    assert answer.status_code == 503
    assert "try again later" in answer.json()["detail"]
    monkeypatch.undo()
    assert is_served(url, own)


def test_uploads_are_deleted_and_the_examples_are_not(url, own, monkeypatch):
    folder = process_uploads()
    sent = upload(url, own.read_bytes(), "old.png")
    config = httpx.get(f"{url}/config").json()
    galleries = [part for part in config["components"] if part["type"] == "gallery"]
    shown = [each["image"]["path"] for part in galleries for each in part["props"]["value"]]
    assert len(shown) == 6
    monkeypatch.setattr(Uploads.sweep, "__defaults__", (0.1,))
    limit = time.monotonic() + 30
    while Path(sent).exists() and time.monotonic() < limit:
        time.sleep(0.05)
    assert not Path(sent).exists()
    assert all(Path(path).is_file() for path in shown)
    kind, words = call(url, {"path": sent}, QUESTION, 1.0)
    assert kind == "error"
    assert "old.png is no picture of this page: upload the picture again" in words
    kind, words = call(url, {"path": shown[0]}, QUESTION, 1.0)
    assert kind == "complete"
    monkeypatch.undo()
    assert folder.size > 0
    assert is_served(url, own)


@pytest.mark.parametrize("index", [-1, 6, 10**9, None, "0", True, [0, 1]])
def test_an_unknown_choice_is_refused(index):
    class Event:
        pass

    event = Event()
    event.index = index
    with pytest.raises(gate.gr.Error, match="choose one of 6"):
        gate.chosen_of(event, range(6))


def test_allowed_and_refused_file_paths(tmp_path):
    folder = Uploads((tmp_path / "own").resolve())
    folder.folder.mkdir()
    inside = folder.folder / "a b.png"
    inside.write_bytes(png(8, 8))
    (tmp_path / "own-not").mkdir()
    (tmp_path / "own-not" / "a.png").write_bytes(png(8, 8))
    assert folder.own(str(inside)) == inside
    assert folder.own(f"{folder.folder}/../own/a b.png") == inside
    assert folder.picture(str(inside)) == inside
    for name in (tmp_path / "own-not" / "a.png", folder.folder / "none.png"):
        with pytest.raises(CompExportError, match="is no picture of this page"):
            folder.own(str(name))


def test_old_files_and_empty_folders_are_removed(tmp_path):
    folder = Uploads(tmp_path.resolve())
    for name in ("old", "kept", "new"):
        (folder.folder / name).mkdir()
        (folder.folder / name / "a.png").write_bytes(b"x")
    old, kept = folder.folder / "old" / "a.png", folder.folder / "kept" / "a.png"
    long_ago = time.time() - 100
    for path in (old, kept):
        os.utime(path, (long_ago, long_ago))
    assert folder.sweep(frozenset([kept]), 50.0) == 0  # changed just now: the times were set
    time.sleep(0.02)
    (folder.folder / "new" / "a.png").touch()
    folder.sweep(frozenset([kept]), 0.01)
    assert kept.is_file()
    assert not old.exists()
    time.sleep(0.02)
    folder.sweep(frozenset([kept]), 0.01)
    assert not old.parent.exists()


def test_folders_of_killed_pages_are_removed(tmp_path):
    alive, dead, foreign = (tmp_path / f"{uploads.PREFIX}{name}" for name in "abc")
    for folder in (alive, dead, foreign):
        folder.mkdir()
        (folder / "picture.png").write_bytes(b"x")
    uploads._hold(alive)
    (dead / uploads.LOCK).touch()  # nobody holds it
    uploads.remove_abandoned(tmp_path)
    assert alive.is_dir()
    assert foreign.is_dir()  # not recognised as a page's
    assert not dead.exists()
