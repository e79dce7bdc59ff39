"""Atomic writes; plans and runs that are refused by name."""

import errno
import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors import SafetensorError

from comp.errors import CompExportError
from comp.plan import BlockPlan, PruningPlan, Workload, keep_count
from comp.runs import RunDirectory, open_run
from comp.utils.disk import check_file_place, check_place, disk_errors
from comp.utils.files import discard, sweep, write_text, writing, writing_directory


def block(**changes: object) -> BlockPlan:
    sizes = {
        "part": "language",
        "index": 0,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "intermediate_size": 32,
        "kept_key_value_heads": (1,),
        "kept_channels": (0, 5),
    }
    return BlockPlan(**(sizes | changes))


def plan() -> PruningPlan:
    return PruningPlan(
        family="llava",
        model="tiny-llava",
        method="comp",
        rate=0.5,
        workload=Workload(image_tokens=144, text_tokens=9),
        macs_dense=10,
        macs=5,
        blocks=(block(),),
    )


@given(st.integers(0, 10**5), st.integers(1, 1000))
def test_keep_count_is_the_exact_ceiling(n: int, thousandths: int) -> None:
    assert keep_count(n, thousandths / 1000) == math.ceil(Fraction(n * thousandths, 1000))


@given(st.integers(1, 10**5), st.integers(1, 1000))
def test_keep_count_keeps_one_and_no_more_than_there_are(n: int, thousandths: int) -> None:
    assert 1 <= keep_count(n, thousandths / 1000) <= n
    assert keep_count(n, 1.0) == n


def test_query_heads_stay_with_their_group() -> None:
    assert block().kept_heads == (4, 5, 6, 7)


def test_plan_is_immutable_and_survives_save_and_load(tmp_path: Path) -> None:
    plan().save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json") == plan()
    with pytest.raises(ValidationError):
        plan().rate = 0.1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a plan: it holds no JSON object"),
        ('{"version": 99}', "is not a plan: it has none of blocks, workload"),
        (json.dumps(json.loads(plan().model_dump_json()) | {"version": 99}), "version 99"),
        ('{"version": 1, "blocks": [], "workload": {}}', "Field required"),
        (json.dumps(json.loads(plan().model_dump_json()) | {"extra": 1}), "extra"),
    ],
)
def test_bad_plans_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises(CompExportError, match=message) as failure:
        PruningPlan.load(path)
    assert "comp-export prune" in str(failure.value)
    with pytest.raises(CompExportError, match="no plan at"):
        PruningPlan.load(tmp_path / "none.json")


def fail_half_way(target: AbstractContextManager[Path], name: str) -> None:
    with target as temporary:
        (temporary / name if name else temporary).write_text("half")
        raise RuntimeError


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError):
        fail_half_way(writing(path), "")
    assert path.read_text() == "old"
    assert [result.name for result in path.parent.iterdir()] == ["file.txt"]


def test_a_failed_directory_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "artifact"
    with writing_directory(path) as temporary:
        (temporary / "a").write_text("old")
    with pytest.raises(RuntimeError):
        fail_half_way(writing_directory(path), "b")
    assert [result.name for result in path.iterdir()] == ["a"]
    with writing_directory(path) as temporary:
        (temporary / "c").write_text("new")
    assert [result.name for result in path.iterdir()] == ["c"]
    assert [result.name for result in tmp_path.iterdir()] == ["artifact"]


FULL = "disk full while writing .*x .*MiB free.*: free some space"
FULL_OR_LIMITED = (
    "(disk full|quota or limit reached) while writing .*x .*MiB free.*: free some space"
)
TORCH = "[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "as the system says"), FULL),
        (OSError(errno.EDQUOT, "of a user"), "quota exceeded while writing"),
        (
            OSError(errno.EACCES, "of a directory"),
            "cannot write .*x: Permission denied; make it writable",
        ),
        (OSError(errno.EROFS, "of a mount"), "cannot write .*x: Read-only file system"),
        (OSError(errno.ENOTDIR, "of a parent"), "cannot make .*x: Not a directory"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), FULL),
        (
            SafetensorError("I/O error: Read-only file system (os error 30)"),
            "Read-only file system",
        ),
        (
            RuntimeError(
                f"{TORCH} PytorchStreamWriter failed writing file data/3: file write failed"
            ),
            FULL_OR_LIMITED,
        ),
        (RuntimeError("basic_ios::clear: iostream error"), FULL_OR_LIMITED),
        (OSError("4096 requested and 512 written"), FULL_OR_LIMITED),
        (RuntimeError(TORCH), FULL_OR_LIMITED),
        (
            PermissionError(errno.EACCES, "", "model/config.json"),
            r"cannot use model/config\.json: Permission denied; give the right to it",
        ),
    ],
    ids=str,
)
def test_disk_errors_of_every_library_name_the_remedy(
    tmp_path: Path, error: Exception, message: str
) -> None:
    with pytest.raises(CompExportError, match=message) as result, disk_errors(tmp_path / "x"):
        raise error
    assert "--out" not in str(result.value)


def test_disk_errors_state_the_bytes_needed(tmp_path: Path) -> None:
    with (
        pytest.raises(CompExportError, match=r"x \(8 MiB are needed, \d+ MiB free\)"),
        writing(tmp_path / "x", needed=2**23 - 1),
    ):
        raise OSError(errno.ENOSPC, "as the system says")


def test_work_without_disk_space_is_refused_at_the_start(tmp_path: Path) -> None:
    for target in (writing(tmp_path / "x", 2**60), writing_directory(tmp_path / "x", 2**60)):
        with pytest.raises(CompExportError, match=r"disk full .* MiB are needed"), target:
            pytest.fail("begun")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error", [OSError(errno.EINVAL, "other"), RuntimeError("other"), ValueError("other")]
)
def test_other_errors_are_not_reported_as_disk_errors(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error), match="other"), disk_errors(tmp_path / "x"):
        raise error


@pytest.mark.parametrize("has_out", [True, False])
def test_the_remedy_names_out_where_the_command_has_it(tmp_path: Path, has_out: bool) -> None:
    @click.command()
    def command(**_: object) -> None:
        with disk_errors(tmp_path / "x"):
            raise OSError(errno.ENOSPC, "as the system says")

    if has_out:
        command.params.append(click.Option(["--out"]))
    with pytest.raises(CompExportError) as result:
        command.main([], standalone_mode=False)
    assert ("or choose another place with --out" in str(result.value)) == has_out


def in_a_file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "run"


def a_file(tmp_path: Path) -> Path:
    return in_a_file(tmp_path).parent


def a_link_to_nothing(tmp_path: Path) -> Path:
    (tmp_path / "link").symlink_to("nowhere")
    return tmp_path / "link"


def below_a_link_to_nothing(tmp_path: Path) -> Path:
    return a_link_to_nothing(tmp_path) / "run"


def a_long_name(tmp_path: Path) -> Path:
    return tmp_path / ("long" * 70)


def a_name_whose_temporary_is_too_long(tmp_path: Path) -> Path:
    return tmp_path / ("n" * 250)


def a_long_path(tmp_path: Path) -> Path:
    return tmp_path.joinpath(*["deep"] * 1000)


PLACES = {
    in_a_file: "file is a file, and .*run lies below it",
    a_file: "file is a file",
    a_link_to_nothing: "link is a link to nowhere, which is not there",
    below_a_link_to_nothing: "link is a link to nowhere, which is not there",
    a_long_name: "has 280 bytes, names here have 240 at the most",
    a_name_whose_temporary_is_too_long: "has 250 bytes, names here have 240",
    a_long_path: "is too long, paths here have",
}


@pytest.mark.parametrize(
    ("place", "message"), PLACES.items(), ids=lambda each: getattr(each, "__name__", "")
)
def test_unwritable_paths_are_refused_at_once(
    tmp_path: Path, place: Callable[[Path], Path], message: str
) -> None:
    path = place(tmp_path)
    with pytest.raises(CompExportError, match=message):
        check_place(path)


def test_paths_for_files_are_checked(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "file").write_text("")
    check_file_place(tmp_path / "file")
    check_file_place(tmp_path / "new" / "file")
    for name, message in {
        "directory": "directory is a directory, and a file is written there",
        "link": "link is a link to nowhere",
        "file/below": "file is a file: move it away",
        "n" * 250: "has 250 bytes",
    }.items():
        with pytest.raises(CompExportError, match=message):
            check_file_place(tmp_path / name)


def test_writable_paths_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(".")
    for path in (tmp_path, tmp_path / "a", tmp_path / "b" / "c", tmp_path / "link" / "d"):
        check_place(path)
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    """Moved files are restored if nothing replaced them; only other leftovers are removed."""
    names = "(onnx)[a-z-]*|run.json"
    for left in (
        ".onnx.abcd1234",
        ".onnx.old.x_y_z012",
        ".onnx-dense.old.q2345678",
        ".onnx.gone.01234567",
    ):
        (tmp_path / left / left.split(".")[1]).mkdir(parents=True)
    (tmp_path / ".run.json.01234567").write_text("")
    (tmp_path / "onnx").mkdir()
    for own in (".mine.settings", ".onnx.mine", ".lock"):
        (tmp_path / own).write_text("")
    sweep(tmp_path, names)
    assert {path.name for path in tmp_path.iterdir()} == {
        "onnx",
        "onnx-dense",
        ".mine.settings",
        ".onnx.mine",
        ".lock",
    }


def test_discarding_a_link_keeps_its_target(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to("kept")
    discard(tmp_path / "link")
    discard(tmp_path / "nothing")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_latest_points_to_the_newest_run(tmp_path: Path) -> None:
    for name in ("first", "second"):
        run = RunDirectory(tmp_path / name)
        write_text(run.record, json.dumps({"version": 1}))
        run.point_latest_here()
    assert open_run(tmp_path / "latest").path.name == "second"
    assert (tmp_path / "latest").readlink() == Path("second")


def test_damaged_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CompExportError, match="no run at"):
        open_run(tmp_path / "none")
    with pytest.raises(CompExportError, match=r"is no run: run\.json is missing; make one with"):
        open_run(tmp_path)
    RunDirectory(tmp_path / "begun").begin({})
    with pytest.raises(CompExportError, match=r"is not finished: .* continue it"):
        open_run(tmp_path / "begun")
    (tmp_path / "run.json").write_text('{"version": 7}')
    with pytest.raises(CompExportError, match="run of version 7"):
        open_run(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(CompExportError, match="is not JSON"):
        open_run(tmp_path)
