"""The entry point (group ``lmms_eval.models``) by which lmms-eval finds the model ``comp_export``."""

from typing import Any

NAME = "comp_export"
CLASS = "serve.lmms.model.CompExport"


def manifest() -> Any:
    """Return lmms-eval's ``ModelManifest`` of the model; only lmms-eval calls this."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=NAME, simple_class_path=CLASS)
