"""Write a Triton model repository: a generating model, and the graphs as models of their own."""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from comp.errors import CompExportError
from comp.utils.disk import disk_errors
from comp.utils.files import writing_directory
from export.artifact.load import kind_of, load_artifact
from export.artifact.manifest import MANIFEST_NAME, FileEntry, Manifest
from export.tensorrt.manifest import load_engines
from serve.triton.config import ModelConfig
from serve.triton.generating import ARTIFACT
from serve.triton.graphs import GraphModel, Running, onnx_models, plan_models
from serve.triton.ports import INPUTS, OUTPUTS
from serve.triton.settings import GeneratorSettings

Wanted = Literal["all", "generate", "graphs"]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
VERSION = "1"
CONFIG, MODEL = "config.pbtxt", "model.py"
GENERATES = ("question", "caption")  # tasks of the generating model
SOURCE = '''"""A model of Triton's Python backend: answers questions about images, token by token.

It needs the package comp-export with the extra [server] in Triton's Python, and no torch.
"""

from pathlib import Path

import triton_python_backend_utils as pb_utils

from serve.triton.generating import Generating


class TritonPythonModel:
    """See Triton's Python backend."""

    def initialize(self, args):
        self.generating = Generating(pb_utils, args, Path(__file__).parent)

    def execute(self, requests):
        self.generating.execute(requests)

    def finalize(self):
        self.generating.finalize()
'''


@dataclass(frozen=True)
class Repository:
    """The kinds of models to write, and their settings.

    Attributes:
        artifacts: directories of artifacts or engines, by the name of the model.
        wanted: the generating models, the graphs, or both.
        running: how the graphs run; place and instances also count for the generating models.
        settings: of the generating models.
    """

    artifacts: Sequence[tuple[str, Path]]
    wanted: Wanted
    running: Running
    settings: GeneratorSettings


@dataclass(frozen=True)
class _Model:
    """A model to write: its configuration, its files, and texts that are written."""

    config: ModelConfig
    files: dict[str, Path]
    texts: dict[str, str]


def write_repository(repository: Repository, out: Path, force: bool = False) -> list[str]:
    """Write a model repository; return the names of its models.

    Files of an artifact that several models have are hard links of one copy, where the disk has links.

    Raises:
        CompExportError: the directory exists and is not to be replaced; an artifact is damaged, has no models
            of the wanted kind, or does not run in Triton; two models have the same name.
    """
    if (out.exists() or out.is_symlink()) and not force:
        raise CompExportError(f"{out} exists: choose another --out, or replace it with --force")
    models: dict[str, _Model] = {}
    for name, path in repository.artifacts:
        for model in _models_of(name, path, repository):
            if model.config.name in models:
                raise CompExportError(
                    f"two models are called {model.config.name}: name an artifact with ID=PATH"
                )
            models[model.config.name] = model
    sources = {file for model in models.values() for file in model.files.values()}
    with writing_directory(out, sum(file.stat().st_size for file in sources)) as directory:
        copies: dict[Path, Path] = {}
        for name, model in models.items():
            _write(model, directory / name, copies)
    return list(models)


def _models_of(name: str, path: Path, repository: Repository) -> Iterator[_Model]:
    if NAME.fullmatch(name) is None:
        raise CompExportError(
            f"{name!r} is no name of a model: use letters, digits, '.', '_' and '-' (ID=PATH gives another)"
        )
    graphs: Iterator[GraphModel]
    manifest: Manifest
    files: Sequence[FileEntry]
    if kind_of(path) == "tensorrt":
        engines = load_engines(path)
        manifest, files = engines.manifest.artifact, engines.manifest.files
        if engines.manifest.weights == "stripped":
            raise CompExportError(
                f"{path} has engines without weights, which are in another directory: build them with "
                "`comp-export tensorrt --weights embedded --force`"
            )
        graphs = plan_models(engines, name, repository.running)
    else:
        artifact = load_artifact(path)
        manifest, files = artifact.manifest, artifact.manifest.files
        graphs = onnx_models(artifact, name, repository.running)
    generates = manifest.task in GENERATES
    if repository.wanted == "generate" and not generates:
        raise CompExportError(
            f"{path} is a {manifest.task} model, which generates no text: pass --models graphs"
        )
    if repository.wanted != "graphs" and generates:
        yield _generator(name, path, files, repository)
    if repository.wanted != "generate":
        for graph in graphs:
            yield _Model(graph.config, graph.files, {})


def _generator(name: str, path: Path, files: Sequence[FileEntry], repository: Repository) -> _Model:
    config = ModelConfig(
        name,
        "python",
        repository.running.place,
        INPUTS,
        OUTPUTS,
        repository.running.instances,
        decoupled=True,
        parameters=repository.settings.parameters(),
    )
    names = [MANIFEST_NAME, *(entry.name for entry in files)]
    return _Model(config, {f"{ARTIFACT}/{each}": path / each for each in names}, {MODEL: SOURCE})


def _write(model: _Model, directory: Path, copies: dict[Path, Path]) -> None:
    version = directory / VERSION
    version.mkdir(parents=True)
    (directory / CONFIG).write_text(model.config.text(), encoding="utf-8")
    for name, text in model.texts.items():
        (version / name).write_text(text, encoding="utf-8")
    for name, source in model.files.items():
        place = version / name
        place.parent.mkdir(parents=True, exist_ok=True)
        with disk_errors(place):
            _copy(copies.get(source), source, place)
        copies[source] = place


def _copy(written: Path | None, source: Path, place: Path) -> None:
    """Link a file that was written before, or copy it."""
    if written is not None:
        try:
            os.link(written, place)
        except OSError:  # a disk without links
            pass
        else:
            return
    shutil.copyfile(source, place)
