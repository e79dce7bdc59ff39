"""The common part of a manifest cannot be created without a family."""

import pytest

from export.artifact.manifest import Manifest
from tests.export.manifests import artifact_manifest


def test_a_manifest_without_graphs_cannot_be_created():
    whole = artifact_manifest().model_dump()
    fields = {name: whole[name] for name in Manifest.model_fields}
    with pytest.raises(TypeError, match=r"abstract.*graphs"):
        Manifest(**fields)
