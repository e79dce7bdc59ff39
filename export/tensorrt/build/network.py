"""Convert an ONNX graph to a TensorRT network, with its profiles."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from comp.errors import CompExportError
from export.tensorrt.build.profiles import Dims, Profile
from export.tensorrt.library import TensorRT

Dimensions = Mapping[str, tuple[int | str, ...]]  # of each input


def read_graph(path: Path, fixed: Mapping[str, int]) -> onnx.ModelProto:
    """Read the graph without its weights; dimensions named in ``fixed`` become numbers.

    Raises:
        CompExportError: no ONNX file, or one with operators that are not ONNX's own.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's and the system's own
        raise CompExportError(
            f"{path} cannot be read as ONNX ({error}): export it again with "
            "`comp-export onnx --flavour standard --force`"
        ) from error
    domains = sorted({node.domain for node in model.graph.node} - {"", "ai.onnx"})
    if domains:
        raise CompExportError(
            f"{path} has operators of {domains[0]}, which TensorRT does not know: it is of the "
            "onnxruntime flavour; export with --flavour standard"
        )
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in fixed:
                dim.dim_value = fixed[dim.dim_param]
    return model


def input_dimensions(model: onnx.ModelProto) -> dict[str, tuple[int | str, ...]]:
    """Dimensions of every input, as numbers and names."""
    return {
        value.name: tuple(
            dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim
        )
        for value in model.graph.input
    }


def parse(tensorrt: TensorRT, builder: Any, model: onnx.ModelProto, path: Path, log: Any) -> Any:
    """Parse a graph to a strongly typed network: its types are the graph's.

    Args:
        tensorrt: the module.
        builder: its builder.
        model: the graph; its weights are read from the folder of ``path``.
        path: the file of the graph.
        log: a logger of the module.

    Raises:
        CompExportError: TensorRT does not support a node; names it.
    """
    trt = tensorrt.module
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model.SerializeToString(), str(path)):
        error = parser.get_error(0)
        reason = " ".join(error.desc().split())
        raise CompExportError(
            f"{tensorrt.name} {tensorrt.version} cannot parse {path}: node {error.node_name()!r} "
            f"({error.node_operator()}): {reason}"
        )
    return network


def add_profile(builder: Any, config: Any, profile: Profile, dimensions: Dimensions) -> None:
    """Add an optimisation profile with the shapes of every input."""
    optimisation = builder.create_optimization_profile()
    for name, shapes in profile_shapes(profile, dimensions).items():
        optimisation.set_shape(name, *shapes)
    config.add_optimization_profile(optimisation)


def profile_shapes(profile: Profile, dimensions: Dimensions) -> dict[str, tuple[Dims, Dims, Dims]]:
    """Smallest, usual and largest shape of each input."""
    return {name: profile.shapes(dims) for name, dims in dimensions.items()}
