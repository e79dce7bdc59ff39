"""Writing whole or not at all; plans and runs that are refused by name."""

import errno
import json
import math
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from comp.errors import CompExportError
from comp.files import disk_errors, write_text, writing, writing_directory
from comp.plan import BlockPlan, PruningPlan, Workload, keep_count
from comp.runs import RunDirectory, open_run


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


def test_plan_is_immutable_and_survives_the_disk(tmp_path: Path) -> None:
    plan().save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json") == plan()
    with pytest.raises(ValidationError):
        plan().rate = 0.1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "version None"),
        ('{"version": 99}', "version 99"),
        ('{"version": 1}', "Field required"),
        (json.dumps(json.loads(plan().model_dump_json()) | {"extra": 1}), "extra"),
    ],
)
def test_bad_plans(tmp_path: Path, content: str, message: str) -> None:
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
    assert [found.name for found in path.parent.iterdir()] == ["file.txt"]


def test_a_failed_directory_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "artifact"
    with writing_directory(path) as temporary:
        (temporary / "a").write_text("old")
    with pytest.raises(RuntimeError):
        fail_half_way(writing_directory(path), "b")
    assert [found.name for found in path.iterdir()] == ["a"]
    with writing_directory(path) as temporary:
        (temporary / "c").write_text("new")
    assert [found.name for found in path.iterdir()] == ["c"]
    assert [found.name for found in tmp_path.iterdir()] == ["artifact"]


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.ENOSPC, "disk full .* free some space"), (errno.EACCES, "cannot write .* --out")],
)
def test_disk_errors_name_the_remedy(tmp_path: Path, number: int, message: str) -> None:
    with pytest.raises(CompExportError, match=message), disk_errors(tmp_path / "x"):
        raise OSError(number, "as the system says")
    with pytest.raises(OSError, match="other"), disk_errors(tmp_path / "x"):
        raise OSError(errno.EINVAL, "other")


def test_latest_follows_to_the_newest_run(tmp_path: Path) -> None:
    for name in ("first", "second"):
        run = RunDirectory(tmp_path / name)
        write_text(run.record, json.dumps({"version": 1}))
        run.point_latest_here()
    assert open_run(tmp_path / "latest").path.name == "second"
    assert (tmp_path / "latest").readlink() == Path("second")


def test_runs_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CompExportError, match="no run at"):
        open_run(tmp_path)
    (tmp_path / "run.json").write_text('{"version": 7}')
    with pytest.raises(CompExportError, match="run of version 7"):
        open_run(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(CompExportError, match="is not JSON"):
        open_run(tmp_path)
