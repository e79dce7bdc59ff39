"""The study files of the documentation are valid, and agree with their comments."""

from pathlib import Path

import pytest

from serve.study.grid import cells_of, removes_of, rows_of
from serve.study.loading import load_study

FILES = sorted((Path(__file__).parents[3] / "docs" / "studies").glob("*.toml"))


def test_the_docs_have_study_files():
    assert {path.stem for path in FILES} >= {"smoke", "core", "ablation", "clip", "nlvr"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_study_file_is_read(path):
    assert cells_of(load_study(path))


@pytest.mark.parametrize("name", ["core", "clip", "nlvr"])
def test_a_comparison_has_both_single_modes(name):
    (path,) = [path for path in FILES if path.stem == name]
    study = load_study(path)
    assert {removes_of(study, row) for row in rows_of(study)} == {"both", "tokens", "parameters"}
    assert study.rates == (0.7, 0.8, 0.85)
