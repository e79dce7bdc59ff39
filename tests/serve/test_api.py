"""The Python API of ``export`` and ``serve`` refuses wrong arguments by name, before it writes anything."""

import pytest

import comp
import export
import serve


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (export.onnx, {"precision": "int5"}, "precision is 'int5': choose from float32, "),
        (export.onnx, {"flavour": "vanilla"}, "flavour is 'vanilla': choose from onnxruntime, "),
        (export.onnx, {"rounding": "up"}, "rounding is 'up': choose from nearest, calibrated"),
        (export.onnx, {"examples": 0}, "examples is 0: give a whole number from 1"),
        (export.verify, {"questions": 0}, "questions is 0: give a whole number from 1"),
        (export.verify, {"max_new_tokens": "4"}, "max_new_tokens is '4': give a whole number"),
        (export.verify, {"device": "gpu"}, "device is 'gpu': choose from auto, cpu, cuda"),
        (serve.load, {"backend": "onnx"}, "backend is 'onnx': choose from onnxruntime, "),
        (serve.load, {"provider": "gpu"}, "provider is 'gpu': choose from auto, "),
        (serve.load, {"precision": "int5"}, "precision is 'int5': choose from float32, "),
        (serve.load, {"threads": 0}, "threads is 0: give a whole number from 1"),
        (serve.evaluate, {"limit": -1}, "limit is -1: give a whole number from 1"),
        (serve.evaluate, {"device": "gpu"}, "device is 'gpu': choose from auto, cpu, cuda"),
    ],
)
def test_wrong_arguments_are_refused_by_name(tmp_path, function, arguments, message):
    run = comp.RunDirectory(tmp_path)
    with pytest.raises(comp.CompExportError, match=message):
        function(run, **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("function", [export.onnx, export.verify, serve.load, serve.evaluate])
def test_what_is_no_run_is_refused(tmp_path, function):
    for run, why in (
        (tmp_path, "is no run: run.json is missing"),
        (str(tmp_path / "absent"), "no run at "),
    ):
        with pytest.raises(comp.CompExportError, match=why):
            function(run)
    with pytest.raises(comp.CompExportError, match="run is 5: give a path"):
        function(5)
    assert list(tmp_path.iterdir()) == []
