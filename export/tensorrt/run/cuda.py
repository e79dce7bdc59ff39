"""The CUDA runtime calls that running an engine needs, with readable errors."""

import weakref
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from comp.errors import CompExportError

MIB = 2**20
SMALLEST = 256  # bytes: an address is never null, also for a tensor without elements


def load_runtime() -> Any:
    """Import ``cuda.bindings.runtime``; the caller has checked ``gpu_capability``."""
    from cuda.bindings import runtime

    return runtime


class Buffer:
    """Memory on the GPU, freed with this object."""

    def __init__(self, runtime: Any, address: int, size: int) -> None:
        self.address = address
        self.size = size
        weakref.finalize(self, runtime.cudaFree, address)


class CudaGraph:
    """Captured work that one call replays."""

    def __init__(self, cuda: "Cuda", runnable: Any) -> None:
        self._cuda = cuda
        self._runnable = runnable
        weakref.finalize(self, cuda.runtime.cudaGraphExecDestroy, runnable)

    def launch(self, stream: int) -> None:
        """Run it."""
        self._cuda.call("cudaGraphLaunch", self._runnable, stream)


class Cuda:
    """Memory, copies, streams and graphs on the first GPU.

    Raises:
        CompExportError: if a call fails; names the call and CUDA's reason.
    """

    def __init__(self) -> None:
        self.runtime = load_runtime()

    def stream(self) -> int:
        """A new stream."""
        stream = self.call("cudaStreamCreate")
        weakref.finalize(self, self.runtime.cudaStreamDestroy, stream)
        return int(stream)

    def allocate(self, size: int) -> Buffer:
        """Allocate ``size`` bytes, zeroed (unwritten memory must not be NaN).

        Raises:
            CompExportError: the GPU is out of memory.
        """
        wanted = max(size, SMALLEST)
        status, address = self.runtime.cudaMalloc(wanted)
        if status == self.runtime.cudaError_t.cudaErrorMemoryAllocation:
            raise CompExportError(
                f"the GPU's memory is used up ({wanted // MIB} MiB more are needed): build engines "
                "with a smaller --max-batch or --max-prompt, or with --weights streamed"
            )
        self._check("cudaMalloc", status)
        buffer = Buffer(self.runtime, int(address), wanted)
        self.call("cudaMemset", buffer.address, 0, wanted)
        return buffer

    def upload(self, address: int, array: NDArray[Any], stream: int) -> None:
        """Copy a contiguous array to the GPU; it must stay alive until the stream is synchronised."""
        kind = self.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, stream)

    def download(self, array: NDArray[Any], address: int, stream: int) -> None:
        """Copy into a contiguous array, which is filled when the stream is synchronised."""
        kind = self.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, stream)

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy bytes on the GPU."""
        kind = self.runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self.call("cudaMemcpyAsync", target, source, size, kind, stream)

    def synchronize(self, stream: int) -> None:
        """Wait until everything on a stream is done."""
        self.call("cudaStreamSynchronize", stream)

    def capture(self, work: Callable[[], None], stream: int) -> CudaGraph:
        """Capture what ``work`` enqueues on the stream, as a graph; nothing runs yet."""
        mode = self.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", stream, mode)
        try:
            work()
        finally:
            graph = self.call("cudaStreamEndCapture", stream)
        runnable = self.call("cudaGraphInstantiate", graph, 0)
        self.call("cudaGraphDestroy", graph)
        return CudaGraph(self, runnable)

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the runtime; return its result without the status."""
        status, *values = getattr(self.runtime, name)(*arguments)
        self._check(name, status)
        return values[0] if values else None

    def _check(self, name: str, status: Any) -> None:
        if status != self.runtime.cudaError_t.cudaSuccess:
            raise CompExportError(
                f"{name} failed ({getattr(status, 'name', status)}): restart the process; if it "
                "fails again, check the driver with nvidia-smi, or use --backend onnxruntime"
            )
