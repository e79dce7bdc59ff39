"""The generating model outside Triton: the engine's tokens, streamed, errors as responses, cancellation."""

import io
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import deserialize_bytes_tensor, triton_to_np_dtype

from comp.errors import CompExportError
from serve.generation.options import GenerationOptions
from serve.triton.generating import Generating
from tests.serve.random_llava import noise
from tests.serve.server.conftest import data_uri
from tests.serve.triton import stand_in
from tests.serve.triton.conftest import config_of, started
from tests.serve.triton.stand_in import InferenceRequest, ResponseSender, TritonError

QUESTIONS = ("what is it?", "where is the dog?", "how many are there on the left of the red thing?")


def strings(*values):
    return np.array([each.encode() if isinstance(each, str) else each for each in values], object)


def file_of(picture):
    with io.BytesIO() as file:
        picture.save(file, "PNG")
        return file.getvalue()


def asked(model, text, images=(), cancel_after=None, **inputs):
    """Send a request; return its sender."""
    sender = ResponseSender(cancel_after)
    inputs = {name: np.array([value]) for name, value in inputs.items()}
    if images:
        inputs["image"] = strings(*images)
    model.execute([InferenceRequest(sender, text_input=strings(text), **inputs)])
    return sender


def values_of(response):
    assert not response.has_error(), response.error().message()
    return {each.name(): each.as_numpy() for each in response.output_tensors()}


def error_of(sender):
    assert sender.ended.wait(60)
    error = sender.responses[-1].error()
    assert error is not None
    return error.code(), error.message()


def test_streamed_tokens_are_those_of_the_engine(generating, compressed):
    pictures = [noise(number) for number in range(3)]
    senders = [
        asked(generating, text, [file_of(picture)], stream=True, max_tokens=12)
        for text, picture in zip(QUESTIONS, pictures, strict=True)
    ]
    for sender, text, picture in zip(senders, QUESTIONS, pictures, strict=True):
        assert sender.ended.wait(60)
        alone = compressed.generate([picture], text, GenerationOptions(max_new_tokens=12))
        *tokens, last = [values_of(each) for each in sender.responses]
        ids = [int(each["token_ids"][0]) for each in tokens]
        assert tuple(ids[: len(alone.token_ids)]) == alone.token_ids
        assert len(ids) - len(alone.token_ids) == (alone.finish_reason == "eos")
        text = b"".join(each["text_output"][0] for each in [*tokens, last]).decode()
        assert text == alone.text
        assert last["finish_reason"][0].decode() == alone.finish_reason
        assert last["num_input_tokens"].tolist() == [alone.prompt_tokens]
        assert last["num_output_tokens"].tolist() == [len(alone.token_ids)]
        assert last["image_tokens_kept"].tolist() == [kept.size for _, kept in alone.kept.seen()]


def test_a_whole_answer_is_one_response(generating, compressed):
    uri = data_uri(noise(4)).encode()
    inputs = {"temperature": np.float32(0.8), "seed": np.uint64(5), "top_p": np.float32(0.9)}
    sender = asked(generating, QUESTIONS[0], [uri], max_tokens=6, **inputs)
    assert sender.ended.wait(60)
    (response,) = map(values_of, sender.responses)
    options = GenerationOptions(6, float(np.float32(0.8)), float(np.float32(0.9)), 5)
    alone = compressed.generate([noise(4)], QUESTIONS[0], options)
    assert response["text_output"][0].decode() == alone.text
    assert response["token_ids"].dtype == np.int64
    sender = asked(generating, QUESTIONS[0], max_tokens=3)
    assert sender.ended.wait(60)
    assert "image_tokens_kept" not in values_of(sender.responses[0])


def test_bad_requests_end_with_an_error_and_others_go_on(generating):
    running = asked(generating, QUESTIONS[1], stream=True, max_tokens=30)
    picture = file_of(noise(0))
    for wanted, sender in (
        ("not a picture", asked(generating, "what is it?", [b"no picture"])),
        ("no base64 data URI", asked(generating, "what is it?", [b"data:text/plain,hello"])),
        ("3 images, 2 at most", asked(generating, "what is it?", [picture] * 3)),
        ("positions", asked(generating, "where is the dog? " * 200)),
        ("not UTF-8", asked(generating, b"\xff\xfe")),
        ("temperature", asked(generating, "what is it?", temperature=-1.0)),
        ("max_new_tokens", asked(generating, "what is it?", max_tokens=0)),
    ):
        code, message = error_of(sender)
        assert code == TritonError.INVALID_ARG
        assert wanted in message
        assert len(sender.responses) == 1
    assert running.ended.wait(60)
    assert len(running.responses) > 1
    assert not running.responses[-1].has_error()


def test_cancelled_requests_end_early_also_while_they_wait(generating):
    long = [asked(generating, QUESTIONS[2], cancel_after=3, stream=True, max_tokens=200)]
    long += [asked(generating, QUESTIONS[2], stream=True, max_tokens=200) for _ in range(2)]
    waiting = asked(generating, QUESTIONS[2], stream=True, max_tokens=200)
    for sender in (*long[1:], waiting):
        sender.cancelled = True
    for sender in (*long, waiting):
        assert error_of(sender)[0] == TritonError.CANCELLED
    assert 3 < len(long[0].responses) < 150
    assert generating.generating.model.worker.load.running == 0


def test_a_full_queue_is_unavailable_and_finalize_finishes_answers(repository):
    model = started(repository / "tiny", max_queue=1, max_num_seqs=1)
    senders = [asked(model, QUESTIONS[2], max_tokens=100) for _ in range(8)]
    model.finalize()
    assert all(sender.ended.is_set() for sender in senders)
    errors = [each.responses[-1].error() for each in senders if each.responses[-1].has_error()]
    assert errors
    assert {each.code() for each in errors} == {TritonError.UNAVAILABLE}
    assert len(errors) < len(senders)


class Client:
    """``tritonclient``'s gRPC client, with a generating model in place of a server."""

    def __init__(self, model, wanted):
        self.model, self.wanted = model, wanted

    def __call__(self, url):
        assert url == "here:8001"
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def start_stream(self, callback):
        self.callback = callback

    def async_stream_infer(self, name, inputs):
        assert name == "tiny-0.4"
        config = {each.name: each for each in self.wanted.input}
        sender, arrays = ResponseSender(), {}
        for each in inputs:
            kind = model_config_pb2.DataType.Name(config[each.name()].data_type)
            assert kind.removeprefix("TYPE_").replace("STRING", "BYTES") == each.datatype()
            raw = each._get_content()
            if each.datatype() == "BYTES":
                arrays[each.name()] = deserialize_bytes_tensor(raw).reshape(each.shape())
            else:
                arrays[each.name()] = np.frombuffer(raw, triton_to_np_dtype(each.datatype()))
        self.model.execute([InferenceRequest(sender, **arrays)])
        assert sender.ended.wait(60)
        for response in sender.responses:
            values = values_of(response)
            self.callback(SimpleNamespace(as_numpy=values.get), None)

    def stop_stream(self):
        pass


def test_the_client_of_the_page_prints_the_answer(
    generating, compressed, repository, tmp_path, monkeypatch, capsys
):
    page = (Path(__file__).parents[3] / "docs/how-to/triton.md").read_text()
    (code,) = re.findall(r"```python\n(.+?)```", page, re.DOTALL)
    picture = tmp_path / "picture.png"
    picture.write_bytes(file_of(noise(1)))
    client = Client(generating, config_of(repository / "tiny-0.4"))
    monkeypatch.setattr("tritonclient.grpc.InferenceServerClient", client)
    monkeypatch.setattr("sys.argv", ["", "here:8001", "tiny-0.4", str(picture), QUESTIONS[1]])
    exec(compile(code, "client.py", "exec"), {"__name__": "__main__"})
    alone = compressed.generate([picture], QUESTIONS[1], GenerationOptions(max_new_tokens=32))
    assert capsys.readouterr().out == alone.text + "\n"


def test_a_bad_parameter_and_another_gpu_are_refused(repository):
    with pytest.raises(CompExportError, match="max_num_seqs 'many' of config"):
        started(repository / "tiny", max_num_seqs="many")
    arguments = {"model_config": "{}", "model_instance_kind": "GPU", "model_name": "tiny"}
    with pytest.raises(CompExportError, match="CUDA_VISIBLE_DEVICES"):
        Generating(stand_in, arguments | {"model_instance_device_id": "1"}, repository)
