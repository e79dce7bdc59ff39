"""BLIP checkpoints: the classes of each task."""

from pathlib import Path
from typing import Any

from comp.errors import CompExportError
from comp.families.checkpoint import CheckpointClasses, CheckpointFormat


def _classes(directory: Path, config: dict[str, Any]) -> CheckpointClasses:
    import transformers
    from transformers import BlipConfig, BlipProcessor

    from comp.families.blip.nlvr import BlipNlvrConfig
    from comp.families.blip.retrieval import BlipRetrieval
    from comp.families.blip.slim import CompBlipConfig
    from comp.families.blip.tasks import BlipCaptions, BlipQuestions, BlipStatements

    tasks = (BlipCaptions, BlipQuestions, BlipRetrieval, BlipStatements)
    kind, named = config["model_type"], (config.get("architectures") or [""])[0]
    known = {adapter.architecture: adapter for adapter in tasks}
    if kind == "comp_blip":
        known = {adapter.slim_type.__name__: adapter for adapter in tasks}
    adapter = known.get(named)
    if adapter is None or (adapter is BlipStatements) != (kind == "comp_blip_nlvr"):
        raise CompExportError(
            f"{directory} is a {kind!r} model of architecture {named!r}: supported are "
            f"{', '.join(known)}"
        )
    if kind == "blip":
        model, settings = getattr(transformers, named), BlipConfig
    else:
        model = adapter.slim_type
        settings = BlipNlvrConfig if adapter is BlipStatements else CompBlipConfig
    return CheckpointClasses(model, settings, BlipProcessor, adapter)


FORMAT = CheckpointFormat(_classes)
