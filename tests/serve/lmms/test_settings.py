"""Arguments and requests of lmms-eval's model ``comp_export`` that are taken, and those refused by name."""

import pytest
from PIL import Image

from comp.errors import CompExportError
from serve.lmms import answering
from serve.lmms.answering import engine_for, pictures_of
from serve.lmms.settings import ModelSettings

PICTURES = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]


def test_arguments_are_those_of_the_command_line():
    """lmms-eval gives ``None`` for options left out, and the batch size as text."""
    given = {"run": "runs/mine", "artifact": "dense", "device": None, "batch_size": "8"}
    settings = ModelSettings.of(given)
    assert settings.batch_size == 8
    assert settings.for_load["dense"]
    assert settings.for_load["device"] == "auto"
    assert ModelSettings.of({}) == ModelSettings(run="runs/latest", artifact=None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"artefact": "dense"}, "'artefact' is unknown: did you mean 'artifact'"),
        ({"pretrained": "x/y"}, "'pretrained' is unknown: choose from run, artifact, "),
        ({"artifact": "pruned"}, "artifact is 'pruned': choose from dense, compressed"),
        ({"images": "first"}, "images is 'first': choose from all, middle"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0: give a whole number from 1"),
        ({"batch_size": "auto"}, "batch_size is 'auto': give a whole number from 1"),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(CompExportError, match=message):
        ModelSettings.of(arguments)


def test_one_artifact_is_not_asked_for_the_other(compressed_artifact):
    ModelSettings.of({"run": compressed_artifact})
    with pytest.raises(
        CompExportError, match=r"artifact=dense: .* is the directory of one artifact"
    ):
        ModelSettings.of({"run": compressed_artifact, "artifact": "dense"})


def test_a_task_names_length_and_ends():
    settings = ModelSettings(max_new_tokens=7)
    wanted = {"until": ["ASSISTANT:", "\n\n"], "temperature": 0.0, "top_p": 1.0, "num_beams": 1}
    options = settings.generation(wanted | {"do_sample": False, "top_k": None}, "gqa")
    assert (options.max_new_tokens, options.stop) == (7, ("ASSISTANT:", "\n\n"))
    options = settings.generation({"until": "\n", "max_new_tokens": 16}, "gqa")
    assert (options.max_new_tokens, options.stop, options.temperature) == (16, ("\n",), 0)
    assert settings.generation({"until": None, "do_sample": True, "temperature": 0}, "x").stop == ()


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"temperature": 0.2}, r"gqa samples \(temperature=0.2\), .* --gen_kwargs temperature=0"),
        ({"do_sample": True}, r"gqa samples \(do_sample=True\), and comp_export answers greedily"),
        ({"num_beams": 5}, "gqa sets num_beams=5, and comp_export has no beam search"),
        ({"repetition_penalty": 1.1}, "gqa sets repetition_penalty=1.1: the engine has no such"),
        ({"max_new_tokens": 0}, "max_new_tokens 0"),
    ],
)
def test_what_engines_do_not_do_is_refused(wanted, message):
    with pytest.raises(CompExportError, match=message):
        ModelSettings().generation(wanted, "gqa")


def test_no_picture_is_left_out_unasked():
    assert pictures_of(PICTURES, "all", "question 1") == PICTURES
    assert pictures_of(PICTURES, "middle", "question 1") == PICTURES[1:2]
    assert pictures_of(None, "all", "question 1") == pictures_of([], "middle", "question 1") == []
    with pytest.raises(CompExportError, match="question 1 shows a str, no picture"):
        pictures_of(["film.mp4"], "all", "question 1")


def test_only_models_that_answer_questions(monkeypatch, compressed, compressed_artifact):
    settings = ModelSettings(run=compressed_artifact, device="cpu", threads=1)
    assert engine_for(settings).manifest == compressed.manifest

    class Retriever:
        manifest = type("Manifest", (), {"task": "retrieval"})

    monkeypatch.setattr(answering, "load", lambda **_: Retriever())
    with pytest.raises(CompExportError, match=r"does not answer questions \(its task is retrieval"):
        engine_for(settings)
