"""Time graphs in turn, so that a slow spell of the machine affects all of them alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

from comp.errors import CompExportError
from comp.utils.device import Device
from comp.utils.install import install_hint
from export.onnxruntime.graph import CPU, CUDA

# A graph of two milliseconds takes half as long again in its first tens of runs.
WARM_SECONDS = 0.1


@dataclass(frozen=True)
class Clock:
    """Numbers of runs of a graph, and the providers.

    Attributes:
        warmup: untimed runs, for at least ``WARM_SECONDS`` unless there are none.
        repeats: timed runs.
        providers: ONNX Runtime's execution providers.
        threads: threads of one operator on a CPU.
    """

    warmup: int
    repeats: int
    providers: tuple[str, ...]
    threads: int

    def in_turn(self, runs: Sequence[Callable[[], None]]) -> list[list[float]]:
        """Milliseconds of each run and repeat: every run once, then every run again."""
        begun, warm = perf_counter(), 0
        while warm < self.warmup or (self.warmup and perf_counter() - begun < WARM_SECONDS):
            for run in runs:
                run()
            warm += 1
        times: list[list[float]] = [[] for _ in runs]
        for _ in range(self.repeats):
            for number, run in enumerate(runs):
                start = perf_counter()
                run()
                times[number].append(1000 * (perf_counter() - start))
        return times


def providers_of(device: Device) -> tuple[str, ...]:
    """ONNX Runtime's execution providers for a device; ``auto`` takes CUDA if it is available.

    Raises:
        CompExportError: ONNX Runtime is missing, or has no CUDA.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise CompExportError(f"onnxruntime is not installed: {install_hint('serve')}") from error
    has_cuda = CUDA in ort.get_available_providers()
    if device == "cuda" and not has_cuda:
        raise CompExportError(
            f"--device cuda: this ONNX Runtime ({ort.__version__}) has no {CUDA}; use --device cpu, "
            f"or pip uninstall onnxruntime, then {install_hint('gpu')}"
        )
    return (CUDA, *CPU) if has_cuda and device != "cpu" else CPU
