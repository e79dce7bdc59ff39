"""Choose the dense and the compressed model of a server."""

from typing import Any

from pydantic import ValidationError

from comp.errors import CompExportError
from demo.remote.client import OTHER, Remote
from demo.remote.generator import PATH, RemoteGenerator
from export.artifact.load import manifest_class
from export.artifact.manifest import Manifest

NAME_BOTH = "name both with --models DENSE COMPRESSED"


def two_models(
    remote: Remote, models: tuple[str, str] | None
) -> tuple[RemoteGenerator, RemoteGenerator]:
    """Return a dense and a compressed model of a server.

    Args:
        remote: the server.
        models: their ids; None: the only two that belong to one checkpoint.

    Raises:
        CompExportError: the server does not answer; a model is missing, or does another task; it is unclear
            which belong together.
    """
    listed = _listed(remote)
    if models is not None:
        dense, compressed = (_called(remote, name, listed) for name in models)
        if not dense.manifest.dense or compressed.manifest.dense:
            raise CompExportError(
                f"--models {dense.id} {compressed.id}: the first must be dense, the second compressed"
            )
        if dense.manifest.task != compressed.manifest.task:
            raise CompExportError(
                f"--models {dense.id} {compressed.id}: one does {dense.manifest.task}, the other "
                f"{compressed.manifest.task}"
            )
        return dense, compressed
    able = [name for name, own in listed.items() if own.get("endpoint") == PATH]
    if not able:
        _called(remote, next(iter(listed), ""), listed)  # refuses it by its task
    known = [_called(remote, name, listed) for name in able]
    pairs = [
        (dense, compressed)
        for dense in known
        for compressed in known
        if dense.manifest.dense and not compressed.manifest.dense and _related(dense, compressed)
    ]
    if len(pairs) != 1:
        many = "no dense and compressed model of one checkpoint" if not pairs else "several pairs"
        raise CompExportError(f"{remote.url} has {many} ({', '.join(able)}): {NAME_BOTH}")
    return pairs[0]


def _related(one: RemoteGenerator, other: RemoteGenerator) -> bool:
    """Whether both are of one checkpoint, for one task."""
    first, second = one.manifest, other.manifest
    return (first.model, first.family, first.task) == (second.model, second.family, second.task)


def _listed(remote: Remote) -> dict[str, dict[str, Any]]:
    """The entries of the server's models, by id."""
    try:
        return {
            str(each["id"]): dict(each["comp_export"]) for each in remote.get("/v1/models")["data"]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise CompExportError(f"{remote.url} lists no models of comp-export: {OTHER}") from error


def _called(remote: Remote, name: str, listed: dict[str, dict[str, Any]]) -> RemoteGenerator:
    own = listed.get(name)
    if own is None:
        raise CompExportError(
            f"no model {name!r} at {remote.url}, which has {', '.join(listed) or 'none'}: {NAME_BOTH}"
        )
    if own.get("endpoint") != PATH:
        raise CompExportError(
            f"{name} is a {own.get('task')} model: a page of a server asks questions and has pictures "
            "described; see others with `comp-export demo RUN`"
        )
    manifest = _manifest(remote, name)
    provider, verified = str(own.get("backend")), own.get("verified") is True
    return RemoteGenerator(remote, name, manifest, provider, verified)


def _manifest(remote: Remote, name: str) -> Manifest:
    fields = remote.get(f"/v1/models/{name}/manifest")
    try:
        return manifest_class(fields).model_validate(fields, strict=False)
    except (ValueError, ValidationError) as error:
        raise CompExportError(
            f"the manifest of {name} at {remote.url} is unknown: {OTHER}"
        ) from error
