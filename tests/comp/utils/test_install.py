"""The command that installs an extra works from a checkout and from a wheel."""

import sys
from pathlib import Path

import pytest

from comp.cli import EXTRA_OF_PACKAGE
from comp.utils import install
from comp.utils.install import install_hint

ROOT = Path(__file__).parents[3]
DECLARED = [
    "numpy>=1.26",
    "onnxruntime>=1.22; extra == 'serve'",
    'gradio>=6.0; extra == "demo"',
    "cuda-bindings>=13.0; (sys_platform == 'linux') and extra == 'tensorrt-rtx'",
]


@pytest.fixture
def own_pip(monkeypatch):
    pip = Path(sys.executable).parent / "pip"
    monkeypatch.setattr(install.shutil, "which", lambda name: str(pip))


def wheel(monkeypatch, tmp_path):
    monkeypatch.setattr(install, "ROOT", tmp_path)
    monkeypatch.setattr(install, "requires", lambda name: DECLARED)


@pytest.mark.usefixtures("own_pip")
def test_in_a_checkout_it_is_installed_again_with_the_extras(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert install_hint("serve") == "pip install -e '.[serve]'"
    assert install_hint("gpu", "tensorrt") == "pip install -e '.[gpu,tensorrt]'"
    assert install_hint() == "pip install -e '.'"
    monkeypatch.chdir(tmp_path)
    assert install_hint("serve") == f"pip install -e '{ROOT}[serve]'"


@pytest.mark.usefixtures("own_pip")
def test_from_a_wheel_the_packages_of_the_extras_are_named(monkeypatch, tmp_path):
    wheel(monkeypatch, tmp_path)
    assert install_hint("serve") == "pip install 'onnxruntime>=1.22'"
    assert install_hint("demo", "tensorrt-rtx") == "pip install 'gradio>=6.0' 'cuda-bindings>=13.0'"
    assert install_hint() == "install comp-export again, with its dependencies"


def test_another_environments_pip_is_not_named(monkeypatch, tmp_path):
    wheel(monkeypatch, tmp_path)
    monkeypatch.setattr(install.sys, "executable", "/opt/env/bin/python")
    monkeypatch.setattr(install.shutil, "which", lambda name: "/usr/bin/pip")
    assert install_hint("serve") == "/opt/env/bin/python -m pip install 'onnxruntime>=1.22'"


def test_every_extra_that_is_hinted_at_exists():
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    extras = {line.partition(" = [")[0] for line in lines if " = [" in line}
    assert set(EXTRA_OF_PACKAGE.values()) <= extras


def test_no_hint_in_the_code_names_a_package_on_an_index():
    for package in ("comp", "export", "serve", "demo"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert "pip install 'comp-export" not in text, path
