"""A stand-in of ``triton_python_backend_utils``, which only exists inside Triton.

It keeps to the rules of Triton's Python backend (``response_sender.cc``, ``pb_utils``): flags are 0 or final,
nothing is sent after the final response, tensors are numpy arrays of a declared type, errors carry a code.
"""

import threading

import numpy as np

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


class TritonError:
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG = 0, 1, 2, 3
    UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = 4, 5, 6, 7

    def __init__(self, message, code=INTERNAL):
        self._message, self._code = message, code

    def message(self):
        return self._message

    def code(self):
        return self._code


class Tensor:
    def __init__(self, name, array):
        assert isinstance(array, np.ndarray)
        assert array.size, "an empty output"
        self._name, self._array = name, array

    def name(self):
        return self._name

    def as_numpy(self):
        return self._array


class InferenceResponse:
    def __init__(self, output_tensors=(), error=None):
        self._tensors, self._error = list(output_tensors), error

    def output_tensors(self):
        return self._tensors

    def has_error(self):
        return self._error is not None

    def error(self):
        return self._error


class ResponseSender:
    """Collects the responses; ``cancel_after`` responses the client cancels."""

    def __init__(self, cancel_after=None):
        self.responses, self.ended = [], threading.Event()
        self._cancel_after = cancel_after
        self.cancelled = False

    def send(self, response=None, flags=0):
        assert flags in (0, TRITONSERVER_RESPONSE_COMPLETE_FINAL), "Unsupported flag provided."
        assert response is not None or flags, "a response must be provided"
        assert not self.ended.is_set(), "Response sender has been closed."
        if response is not None:
            self.responses.append(response)
        if len(self.responses) == self._cancel_after:
            self.cancelled = True
        if flags:
            self.ended.set()

    def is_cancelled(self):
        return self.cancelled


class InferenceRequest:
    def __init__(self, sender, **inputs):
        self._sender = sender
        self.tensors = {name: Tensor(name, array) for name, array in inputs.items()}

    def get_response_sender(self):
        return self._sender


def get_input_tensor_by_name(request, name):
    return request.tensors.get(name)
