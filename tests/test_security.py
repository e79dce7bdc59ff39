"""SECURITY.md's rules for every call in the packages, and that code next to a checkpoint is not run."""

import ast
import json
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = [
    path
    for package in ("comp", "export", "serve", "demo")
    for path in sorted((ROOT / package).rglob("*.py"))
]
UNPICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
COMPUTED = "computed"  # in place of a value that is no constant


def calls() -> list[tuple[str, str, dict[str, object]]]:
    """Yield every call with a dotted name: its place, name and keywords."""
    listed = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                given = {
                    each.arg: each.value.value if isinstance(each.value, ast.Constant) else COMPUTED
                    for each in node.keywords
                    if each.arg
                }
                where = f"{path.relative_to(ROOT)}:{node.lineno}"
                listed.append((where, ast.unparse(node.func), given))
    return listed


CALLS = calls()


def test_no_module_unpickles() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [
                alias.name for alias in getattr(node, "names", []) if isinstance(node, ast.Import)
            ]
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & UNPICKLING, path
    for where, name, given in CALLS:
        if name == "torch.load":  # the state of the user's own run, by torch's restricted unpickler
            assert given.get("weights_only") is True, where
        assert name not in ("np.load", "numpy.load", "eval", "exec", "compile"), where


def test_no_code_of_a_checkpoint_is_executed() -> None:
    for where, name, given in CALLS:
        assert given.get("trust_remote_code") in (None, False), where
        if name.startswith("Auto") and name.endswith(".from_pretrained"):
            assert given.get("trust_remote_code") is False, where
            assert given.get("local_files_only") is True, where
        if name.endswith(".from_pretrained") and "dtype" in given:  # weights
            assert given.get("use_safetensors") is True, where


def test_no_command_goes_through_a_shell() -> None:
    for where, name, given in CALLS:
        assert given.get("shell") in (None, False), where
        assert name not in ("os.system", "os.popen", "subprocess.getoutput"), where


@pytest.mark.slow
def test_code_beside_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    from comp.checkpoints.locate import resolve_model
    from comp.families.loading import load_adapter
    from export.proof.first_link.in_transformers import InTransformers

    model = tmp_path / "model"
    shutil.copytree(resolve_model("tiny-clip"), model)
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w').close()\nclass Own: pass\n"
    (model / "own.py").write_text(code)
    own = dict.fromkeys(("AutoConfig", "AutoModel", "AutoProcessor"), "own.Own")
    own |= {"AutoTokenizer": ["own.Own", "own.Own"], "AutoImageProcessor": "own.Own"}
    for name in ("config.json", "tokenizer_config.json", "processor_config.json"):
        fields = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps(fields | {"auto_map": own}))
    load_adapter(model)
    InTransformers(model, "clip", "retrieval", "transformers")
    assert not ran.exists()
