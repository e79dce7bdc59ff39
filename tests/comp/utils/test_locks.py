"""One process at a time in a directory: errors name the holder; locks of dead processes are taken over."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import click
import psutil
import pytest

from comp.errors import CompExportError
from comp.runs import RunDirectory, hold
from comp.utils import locks
from comp.utils.locks import LOCK, Owner, is_first_process, locked

HOLDING = """
import sys
from pathlib import Path
from comp.utils.locks import locked
with locked(Path(sys.argv[1]), "prune"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds ``tmp_path / "run"``."""
    words = [sys.executable, "-c", HOLDING, str(tmp_path / "run")]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def write_owner(directory, **changes):
    directory.mkdir(exist_ok=True)
    owner = Owner.myself("onnx").model_copy(update=changes)
    (directory / LOCK).write_text(owner.model_dump_json())


def test_the_error_of_a_second_process_names_the_first(tmp_path, holder):
    with (
        pytest.raises(CompExportError) as refused,
        locked(tmp_path / "run", "onnx"),
    ):
        pass
    message = str(refused.value)
    assert f"{tmp_path / 'run'} is in use: `prune` works there since " in message
    assert f"process {holder.pid} on host {socket.gethostname()}" in message
    holder.communicate("")
    with locked(tmp_path / "run", "onnx"):
        owner = json.loads((tmp_path / "run" / LOCK).read_text())
        assert (owner["pid"], owner["doing"]) == (os.getpid(), "onnx")
    assert not (tmp_path / "run").exists(), "made for the lock alone"


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "run" / LOCK).is_file()
    with locked(tmp_path / "run", "onnx"):
        pass
    assert not (tmp_path / "run" / LOCK).exists()


def test_another_hosts_lock_is_refused_with_the_remedy(tmp_path):
    write_owner(tmp_path, host="elsewhere", boot="another")
    with (
        pytest.raises(CompExportError, match=rf"on host elsewhere, .* delete {tmp_path / LOCK}"),
        locked(tmp_path, "onnx"),
    ):
        pass
    (tmp_path / LOCK).unlink()
    with locked(tmp_path, "onnx"):
        pass


def test_a_lock_from_before_a_reboot_is_taken_over(tmp_path):
    write_owner(tmp_path, boot="before", started=psutil.boot_time() - 60)
    with locked(tmp_path, "prune"):
        pass
    assert not (tmp_path / LOCK).exists()


def test_an_owner_started_after_this_boot_on_a_machine_of_the_same_name_is_foreign(
    tmp_path,
):
    write_owner(tmp_path, boot="another", started=psutil.boot_time() + 60)
    with pytest.raises(CompExportError, match="cannot be looked up"), locked(tmp_path, "prune"):
        pass


def test_another_container_of_this_machine_is_judged_by_the_kernel(tmp_path):
    write_owner(tmp_path, host="container-1", pid=1)
    with locked(tmp_path, "onnx"):
        pass


@pytest.fixture
def no_kernel_locks(monkeypatch):
    def refuse(file, mode):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.usefixtures("no_kernel_locks")
def test_without_kernel_locks_the_process_id_decides(tmp_path, monkeypatch):
    write_owner(tmp_path)  # this very process
    with (
        pytest.raises(CompExportError, match=f"process {os.getpid()} on host"),
        locked(tmp_path, "onnx"),
    ):
        pass
    for changes in ({"started": 1.0}, {"pid": 2**22 + 1}):  # a number used again; nobody's
        write_owner(tmp_path, **changes)
        with locked(tmp_path, "onnx"):
            pass
    monkeypatch.setattr(locks, "BOOT_ID", tmp_path / "no-linux")
    write_owner(tmp_path, host="elsewhere")
    with pytest.raises(CompExportError, match="elsewhere"), locked(tmp_path, "onnx"):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"{}"])
def test_an_incomplete_lock_is_free(tmp_path, content):
    (tmp_path / LOCK).write_bytes(content)
    with locked(tmp_path, "onnx"):
        pass


@pytest.mark.parametrize("names_itself", [True, False])
def test_an_owner_that_is_still_being_written_is_awaited(tmp_path, monkeypatch, names_itself):
    monkeypatch.setattr(locks.time, "sleep", lambda _: names_itself and write_owner(tmp_path))
    with (tmp_path / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        message = (
            f"process {os.getpid()} on host" if names_itself else "another process works there"
        )
        with pytest.raises(CompExportError, match=message), locked(tmp_path, "onnx"):
            pass


def test_files_in_a_new_directory_are_kept(tmp_path):
    with locked(tmp_path / "a" / "b", "prune"):
        (tmp_path / "a" / "b" / "file").write_text("")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file"]


def test_releasing_the_lock_of_a_removed_directory_keeps_the_next_lock(tmp_path):
    with locked(tmp_path / "run", "study"):
        (tmp_path / "run" / LOCK).unlink()
        with locked(tmp_path / "run", "prune"):
            assert (tmp_path / "run" / LOCK).is_file()


def test_a_command_locks_its_run_until_it_ends(tmp_path):
    run = RunDirectory(tmp_path)

    @click.command()
    def command():
        hold(run, "onnx")
        with pytest.raises(CompExportError, match="is in use"):
            hold(run, "verify")

    for _ in range(2):
        command.main([], standalone_mode=False)
    assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize(
    ("variables", "first"),
    [({}, True), ({"RANK": "0"}, True), ({"RANK": "1"}, False), ({"PMI_RANK": "3"}, False)],
)
def test_first_process_of_a_launch_is_recognised(monkeypatch, variables, first):
    for name in locks.RANKS:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() is first
