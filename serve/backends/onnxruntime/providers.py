"""ONNX Runtime's execution providers: choose one, and create sessions with it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import onnxruntime as ort

from comp.errors import CompExportError
from comp.utils.install import install_hint
from export.artifact.manifest import REMEDY, Manifest
from serve.backends.base import ProviderChoice
from serve.backends.onnxruntime.provider_shapes import profile_options

Device: TypeAlias = Literal["cpu", "cuda"]
Provider: TypeAlias = Literal["cpu", "cuda", "tensorrt", "tensorrt-rtx"]
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
TENSORRT, RTX = "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider"
PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"  # the plugin with the RTX provider
REMEDIES: dict[Provider, str] = {
    "cpu": "reinstall onnxruntime",
    "cuda": f"pip uninstall onnxruntime, then {install_hint('gpu')}",
    "tensorrt": f"pip uninstall onnxruntime, then {install_hint('gpu', 'tensorrt')}",
    "tensorrt-rtx": "pip install onnxruntime-ep-nv-tensorrt-rtx, on a machine with an RTX GPU",
}


def choose_provider(
    requested: ProviderChoice,
    device: Literal["auto", "cpu", "cuda"],
) -> Provider:
    """Choose the provider to run with.

    Args:
        requested: ``auto`` is ``cuda`` if this ONNX Runtime has it and the device may be a GPU.
        device: where to compute.

    Raises:
        CompExportError: the two contradict each other, or the provider is not available.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise CompExportError(f"unknown device {device!r}: choose auto, cpu or cuda")
    if requested not in ("auto", *REMEDIES):
        raise CompExportError(f"unknown provider {requested!r}: choose auto, {', '.join(REMEDIES)}")
    if requested == "auto":
        has_cuda = CUDA in ort.get_available_providers()
        if device == "cuda" and not has_cuda:
            raise _missing(
                "cuda",
                f"device cuda: this ONNX Runtime ({ort.__version__}) is built without CUDA",
                " or use --device cpu",
            )
        return "cuda" if has_cuda and device != "cpu" else "cpu"
    if (requested == "cpu") != (device == "cpu") and device != "auto":
        raise CompExportError(
            f"provider {requested} with device {device}: leave --device out, or name the other provider"
        )
    names: dict[str, str] = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}
    if requested in names and names[requested] not in ort.get_available_providers():
        raise _missing(
            requested,
            f"provider {requested}: this ONNX Runtime ({ort.__version__}) has no {names[requested]}",
            " or use --provider cpu",
        )
    return requested


def device_of(provider: Provider) -> Device:
    """The device on which a provider computes and keeps its values."""
    return "cpu" if provider == "cpu" else "cuda"


def _missing(provider: Provider, what: str, otherwise: str) -> CompExportError:
    return CompExportError(f"{what}; {REMEDIES[provider]};{otherwise}")


@dataclass(frozen=True)
class SessionMaker:
    """Creates sessions of one artifact's graphs with one provider.

    Attributes:
        provider: the first choice; nodes that it does not support run on CUDA or the CPU.
        manifest: manifest of the artifact; TensorRT's providers need its input shapes.
        cache: directory for kernels that TensorRT's providers compile.
        threads: threads of one operator on the CPU; ``None`` takes one for each core.
    """

    provider: Provider
    manifest: Manifest
    cache: Path
    threads: int | None = None

    def session(self, path: Path, threads: int | None = None) -> ort.InferenceSession:
        """Load a graph.

        Args:
            path: the ``.onnx`` file; its external data is in the same folder.
            threads: overrides ``self.threads``.

        Raises:
            CompExportError: it cannot be loaded, or the provider cannot be started.
        """
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or self.threads or 0
        options.inter_op_num_threads = 1
        # Idle threads of one graph must not take the cores from the next graph or the other engine.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if self.provider == "tensorrt-rtx":
            settings = profile_options(self.manifest, path.name, "nv_profile")
            settings["nv_runtime_cache_path"] = str(self.cache)
            options.add_provider_for_devices(_rtx_devices(), settings)
            providers: list[Any] | None = None
        else:
            providers = self._providers(path)
        try:
            session = ort.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # ONNX Runtime's exceptions have no common base but this
            reason = " ".join(str(error).split())
            raise CompExportError(f"ONNX Runtime cannot load {path}: {reason}; {REMEDY}") from error
        self._check_started(session)
        return session

    def _providers(self, path: Path) -> list[Any]:
        """Provider names for ``InferenceSession``, with their options."""
        if self.provider == "cpu":
            return [CPU]
        if self.provider == "cuda":
            return [CUDA, CPU]
        settings = profile_options(self.manifest, path.name, "trt_profile")
        settings |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(self.cache),
            "trt_timing_cache_enable": "1",
        }
        half = {"float16": "trt_fp16_enable", "bfloat16": "trt_bf16_enable"}
        if self.manifest.precision in half:
            settings[half[self.manifest.precision]] = "1"
        return [(TENSORRT, settings), CUDA, CPU]

    def _check_started(self, session: ort.InferenceSession) -> None:
        """Check that the provider started: ONNX Runtime silently continues without it."""
        names = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT, "tensorrt-rtx": RTX}
        wanted = names[self.provider]
        if wanted not in session.get_providers():
            raise CompExportError(
                f"provider {self.provider}: ONNX Runtime has {wanted} but cannot start it (a driver, "
                "CUDA, cuDNN or TensorRT library is missing or of another version); use --provider "
                "cpu"
            )


def _rtx_devices() -> list[Any]:
    """The GPUs of the plugin provider; its library is registered at the first call.

    Raises:
        CompExportError: the plugin is not installed, does not load, or sees no RTX GPU.
    """
    try:
        import onnxruntime_ep_nv_tensorrt_rtx as plugin
    except ImportError as error:
        raise CompExportError(
            f"provider tensorrt-rtx: its plugin is not installed; {REMEDIES['tensorrt-rtx']}"
        ) from error
    name = plugin.get_ep_name()
    if not any(device.ep_name == name for device in ort.get_ep_devices()):
        try:
            ort.register_execution_provider_library(name, plugin.get_library_path())
        except Exception as error:  # as above
            reason = " ".join(str(error).split())
            raise CompExportError(
                f"provider tensorrt-rtx: ONNX Runtime cannot load {PLUGIN}: {reason}; it needs an "
                "RTX GPU and its driver; use --provider cpu"
            ) from error
    devices = [device for device in ort.get_ep_devices() if device.ep_name == name]
    if not devices:
        raise CompExportError(
            "provider tensorrt-rtx: there is no RTX GPU here (Ampere or later); use --provider cpu"
        )
    return devices
