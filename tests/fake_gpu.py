"""A simulated GPU: CUDA's calls on host memory, and engines that run in ONNX Runtime.

It keeps to what the real ones promise: addresses are plain numbers, a tensor is wherever it was last
bound, a shape outside the profile is refused, a captured graph reads the addresses that were bound
when it was captured, and nothing runs while capturing.
"""

import ctypes
import json
from enum import Enum
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort

from export.tensorrt.manifest import load_engines

TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
}


TRT_NAMES = {"float32": "FLOAT", "float16": "HALF", "int64": "INT64"}


class TensorIOMode(Enum):
    INPUT = 1
    OUTPUT = 2


class Status(Enum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInvalidValue = 1


class Kind(Enum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class FakeCuda:
    """The used functions of ``cuda.bindings.runtime``, on host memory."""

    cudaError_t = Status
    cudaMemcpyKind = Kind
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, memory=2**30):
        self.memory = memory
        self.blocks = {}
        self.recording = None  # the graph that is being captured
        self.launches = 0
        self.to_host = []  # bytes of each copy from the device
        self.streams = 0

    def cudaMalloc(self, size):
        # Copied, as below: other threads allocate meanwhile.
        if sum(len(block) for block in list(self.blocks.values())) + size > self.memory:
            return Status.cudaErrorMemoryAllocation, None
        room = np.full(size + 256, 0xFF, np.uint8)  # fresh memory is not zero: NaN in every type
        start = -room.ctypes.data % 256
        block = room[start : start + size]
        self.blocks[block.ctypes.data] = block
        return Status.cudaSuccess, block.ctypes.data

    def cudaFree(self, address):
        del self.blocks[address]
        return (Status.cudaSuccess,)

    def cudaMemset(self, address, value, size):
        self.check(address, size)
        ctypes.memset(address, value, size)
        return (Status.cudaSuccess,)

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        assert self.recording is None, "a copy was captured"
        if kind is not Kind.cudaMemcpyDeviceToHost:
            self.check(target, size)
        if kind is not Kind.cudaMemcpyHostToDevice:
            self.check(source, size)
        if kind is Kind.cudaMemcpyDeviceToHost:
            self.to_host.append(size)
        ctypes.memmove(target, source, size)
        return (Status.cudaSuccess,)

    def cudaStreamCreate(self):
        self.streams += 1
        return Status.cudaSuccess, self.streams

    def cudaStreamDestroy(self, stream):
        return (Status.cudaSuccess,)

    def cudaStreamSynchronize(self, stream):
        assert self.recording is None
        return (Status.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream, mode):
        self.recording = []
        return (Status.cudaSuccess,)

    def cudaStreamEndCapture(self, stream):
        graph, self.recording = self.recording, None
        return Status.cudaSuccess, graph

    def cudaGraphInstantiate(self, graph, flags):
        return Status.cudaSuccess, tuple(graph)

    def cudaGraphDestroy(self, graph):
        return (Status.cudaSuccess,)

    def cudaGraphExecDestroy(self, graph):
        return (Status.cudaSuccess,)

    def cudaGraphLaunch(self, graph, stream):
        self.launches += 1
        for run in graph:
            run()
        return (Status.cudaSuccess,)

    def check(self, address, size):
        """Every byte must lie in one allocation."""
        # Copied: other threads allocate meanwhile.
        for start, block in list(self.blocks.items()):
            if start <= address and address + size <= start + len(block):
                return
        raise AssertionError(f"{size} bytes at {address} are not the GPU's")

    def view(self, address, shape, dtype):
        count = int(np.prod(shape))
        if count == 0:
            return np.zeros(shape, dtype)
        size = count * np.dtype(dtype).itemsize
        self.check(address, size)
        assert address % 256 == 0, "TensorRT wants addresses aligned to 256 bytes"
        buffer = (ctypes.c_byte * size).from_address(address)
        return np.frombuffer(buffer, dtype).reshape(shape)


class FakeContext:
    """An execution context of one engine."""

    def __init__(self, engine):
        self.engine = engine
        self.shapes = {}
        self.addresses = {}
        self.profile = None

    def set_optimization_profile_async(self, number, stream):
        self.profile = self.engine.entry.profiles[number]
        return True

    def set_input_shape(self, name, shape):
        low, _, high = self.profile.shapes[name]
        fits = all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))
        if fits:
            self.shapes[name] = tuple(shape)
        return fits

    def get_tensor_shape(self, name):
        if name in self.engine.ports:
            return self.shapes[name]
        return self.engine.output_shapes(self.shapes)[name]

    def set_tensor_address(self, name, address):
        if name not in self.engine.names:
            return False
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        cuda = self.engine.cuda
        addresses, shapes = dict(self.addresses), dict(self.shapes)
        assert set(addresses) == set(self.engine.names), "a tensor has no address"
        if cuda.recording is not None:
            cuda.recording.append(lambda: self.engine.run(addresses, shapes))
        else:
            self.engine.run(addresses, shapes)
        return True


class FakeEngine:
    """An engine whose graph runs in ONNX Runtime."""

    def __init__(self, graph, entry, cuda):
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self.session = ort.InferenceSession(str(graph), options)
        self.entry = entry
        self.cuda = cuda
        self.ports = {p.name: TYPES[p.type] for p in self.session.get_inputs()}
        self.outputs = [p.name for p in self.session.get_outputs()]
        self.names = [*self.ports, *self.outputs]
        self.num_io_tensors = len(self.names)
        types = {p.name: TYPES[p.type] for p in self.session.get_outputs()}
        self.types = self.ports | types
        self.known_shapes = {}
        self.runs = 0
        self.budget = None

    def run(self, addresses, shapes):
        self.runs += 1
        feeds = {
            name: self.cuda.view(addresses[name], shapes[name], dtype).copy()
            for name, dtype in self.ports.items()
        }
        places = [addresses[name] for name in self.outputs]
        assert len(set(places)) == len(places), "two outputs go to one place"
        for name in self.outputs:
            if name.startswith("present."):
                past = name.replace("present.", "past_key_values.")
                # In place a cache is one buffer, before and after; one that grows must not overwrite itself.
                in_place = "cache_lengths" in self.ports
                assert (addresses[name] == addresses[past]) == in_place
        result = self.session.run(self.outputs, feeds)
        for name, value in zip(self.outputs, result, strict=True):
            if value.size:
                self.cuda.view(addresses[name], value.shape, value.dtype)[...] = value

    def output_shapes(self, shapes):
        """Return shapes from those of the inputs, as TensorRT knows them before anything runs."""
        assert set(shapes) == set(self.ports), "an input has no shape"
        key = tuple(sorted(shapes.items()))
        if key not in self.known_shapes:
            feeds = {name: np.zeros(shapes[name], dtype) for name, dtype in self.ports.items()}
            result = self.session.run(self.outputs, feeds)
            self.known_shapes[key] = dict(
                zip(self.outputs, (value.shape for value in result), strict=True)
            )
        return self.known_shapes[key]

    def get_tensor_name(self, number):
        return self.names[number]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name in self.ports else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        dtype = np.dtype(self.types[name])
        return SimpleNamespace(name=TRT_NAMES[dtype.name], itemsize=dtype.itemsize)

    def create_runtime_config(self):
        return SimpleNamespace(
            set_execution_context_allocation_strategy=lambda strategy: None,
            cuda_graph_strategy=None,
        )

    def create_execution_context(self, config):
        return FakeContext(self)

    def create_engine_inspector(self):
        layers = [{"Name": f"{node}_mha"} for node in self.outputs]
        text = json.dumps({"Layers": [*layers, "reformat"]})
        return SimpleNamespace(get_engine_information=lambda form: text)

    def get_weight_streaming_automatic_budget(self):
        return 1234

    @property
    def weight_streaming_budget_v2(self):
        return self.budget

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, value):
        self.budget = value


class FakeTensorRT:
    """The module: engines are identified by their bytes, and run the graph they were built from."""

    def __init__(self, cuda, directories, version, captures_graphs):
        self.__version__ = version
        self.engines = []
        self.known = {}
        for directory in directories:
            engines = load_engines(directory)
            for name, entry in engines.manifest.engines.items():
                graph = engines.artifact / entry.graph
                self.known[engines.file(name).read_bytes()] = (graph, entry)
        self.cuda = cuda
        self.ExecutionContextAllocationStrategy = SimpleNamespace(ON_PROFILE_CHANGE=1)
        self.LayerInformationFormat = SimpleNamespace(JSON=1)
        self.TensorIOMode = TensorIOMode
        self.Logger = lambda severity: None
        self.Logger.ERROR = 1
        if captures_graphs:
            self.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE=1)

    def Runtime(self, log):
        def deserialize(data):
            if bytes(data) not in self.known:
                return None
            self.engines.append(FakeEngine(*self.known[bytes(data)], self.cuda))
            return self.engines[-1]

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


def install(monkeypatch, directories, capability="8.9", captures_graphs=True, memory=2**30):
    """Put the fakes in place of the real ones; returns both."""
    from export.tensorrt import gpu
    from export.tensorrt.library import TensorRT
    from export.tensorrt.run import cuda as cuda_module
    from export.tensorrt.run import runtime

    cuda = FakeCuda(memory)
    version = load_engines(Path(directories[0])).manifest.module_version
    module = FakeTensorRT(cuda, directories, version, captures_graphs)
    monkeypatch.setattr(cuda_module, "load_runtime", lambda: cuda)
    monkeypatch.setattr(gpu, "_look", lambda: (capability, ""))
    monkeypatch.setattr(runtime, "find_tensorrt", lambda name: TensorRT(name, module, version))
    return cuda, module
