"""Choose the compute capabilities to build engines for."""

import re

from comp.errors import CompExportError
from comp.utils.install import install_hint
from export.tensorrt.library import TensorRT

PATTERN = re.compile(r"\d{1,2}\.\d")
NEVER_BY_DEFAULT = ("7.5",)  # Turing has no float32 matrix product, which scoring tokens uses


def parse_capabilities(text: str) -> tuple[str, ...]:
    """Parse ``8.0,8.9`` to ``("8.0", "8.9")``, without repetitions.

    Raises:
        CompExportError: a part is not a compute capability.
    """
    parts = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    wrong = [part for part in parts if not PATTERN.fullmatch(part)]
    if wrong or not parts:
        raise CompExportError(
            f"--compute-capability {text!r}: {wrong[0] if wrong else 'nothing'!r} is none; write "
            "them as 8.9 or 8.0,8.9,12.0"
        )
    return parts


def choose_capabilities(
    tensorrt: TensorRT, requested: tuple[str, ...] | None, gpu: str | None
) -> tuple[str, ...]:
    """Choose the compute capabilities to build for.

    Args:
        tensorrt: the module that builds.
        requested: by the user; otherwise the GPU that is here, or all from Ampere on.
        gpu: compute capability of this machine's GPU, if it has one.

    Raises:
        CompExportError: this module cannot build for one of them here.
    """
    if tensorrt.ahead_of_time:
        known = tensorrt.capabilities
        usual = tuple(capability for capability in known if capability not in NEVER_BY_DEFAULT)
        chosen = requested or ((gpu,) if gpu in known and gpu is not None else usual)
        unknown = [capability for capability in chosen if capability not in known]
        if unknown:
            raise CompExportError(
                f"--compute-capability {unknown[0]}: {tensorrt.name} {tensorrt.version} compiles "
                f"for {', '.join(known)}; for another GPU build on it with the package tensorrt"
            )
        return chosen
    if gpu is None:
        raise CompExportError(
            f"{tensorrt.name} builds on the GPU that the engine will run on, and there is none "
            f"here: build on the target, or {install_hint('tensorrt-rtx')} to compile without a GPU"
        )
    elsewhere = [capability for capability in requested or () if capability != gpu]
    if elsewhere:
        raise CompExportError(
            f"--compute-capability {elsewhere[0]}: {tensorrt.name} builds only for the GPU that is "
            f"here ({gpu}): build on the target, or use the package tensorrt_rtx"
        )
    return (gpu,)
