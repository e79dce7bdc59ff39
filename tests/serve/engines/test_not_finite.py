"""Artifacts that compute NaN or infinity: the error names the precision, and there is no answer."""

import copy
import re
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from comp.cli import cli
from comp.errors import CompExportError
from export.exporter import Origin, export_artifact
from export.graph.builder import Target
from serve.engines.llava import Engine
from serve.generation.finite import check_finite
from serve.generation.options import GenerationOptions
from serve.generation.results import Prefilled, TokenText
from serve.loading import load_engine
from tests.comp import small_blip, small_clip
from tests.serve.random_llava import noise

QUESTION = "where is the fox?"
EIGHT = GenerationOptions(max_new_tokens=8, ignore_eos=True)
DRAWN = GenerationOptions(max_new_tokens=8, ignore_eos=True, temperature=0.7)
FLOAT16 = r"--precision float16.*65504.*--precision float32.*--precision bfloat16"


@pytest.fixture(scope="module")
def loud(checkpoint, tmp_path_factory):
    """A model whose residual stream exceeds float16, as in models trained in bfloat16."""
    home = tmp_path_factory.mktemp("loud")
    shutil.copytree(checkpoint.path, home / "dense")
    model = copy.deepcopy(checkpoint.model)
    with torch.no_grad():
        model.model.language_model.layers[1].mlp.down_proj.weight.mul_(60000.0)
    model.save_pretrained(home / "dense")
    for precision in ("float32", "float16"):
        target = Target("onnxruntime", precision)
        export_artifact(home / "dense", home / f"onnx-{precision}", Origin("t"), target)
    return model, home


def test_the_same_model_answers_in_float32_as_torch_does(loud, checkpoint):
    model, home = loud
    inputs = checkpoint.processor(
        text=checkpoint.processor.apply_chat_template(
            [
                {
                    "role": "user",
                    "content": [{"type": "image"}, {"type": "text", "text": QUESTION}],
                }
            ],
            add_generation_prompt=True,
        ),
        images=[noise(1)],
        return_tensors="pt",
    )
    with torch.no_grad():
        generated = model.generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    engine = Engine.load(home / "onnx-float32", "cpu", 1)
    answer = engine.generate([noise(1)], QUESTION, EIGHT)
    assert list(answer.token_ids) == generated[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("options", [EIGHT, DRAWN], ids=["greedy", "drawn"])
def test_overflow_in_float16_is_an_error(loud, options):
    engine = Engine.load(loud[1] / "onnx-float16", "cpu", 1)
    with pytest.raises(CompExportError, match=FLOAT16):
        engine.generate([noise(1)], QUESTION, options)
    with pytest.raises(CompExportError, match=FLOAT16):
        engine.generate_batch([([noise(1)], QUESTION)] * 2, options)


def of_a_state(engine, poisoned_at, row=0):
    """The engine, whose steps give NaN in a row from one on, and the released states."""
    backend, released, steps = engine._backend, [], []
    step, release = backend.step, backend.release

    def poisoned(tokens, state):
        logits, state = step(tokens, state)
        steps.append(tokens)
        if len(steps) == poisoned_at:
            logits = logits.copy()
            logits[row, 3] = np.nan
        return logits, state

    backend.step = poisoned
    backend.release = lambda state: (released.append(state), release(state))
    return released


def test_a_stream_ends_at_the_bad_token_and_releases_its_state(dense_artifact):
    engine = Engine.load(dense_artifact, "cpu", 1)
    released = of_a_state(engine, poisoned_at=3)
    seen = []

    def listen():
        for event in engine.stream([noise(1)], QUESTION, EIGHT):
            seen.append(event)

    with pytest.raises(CompExportError, match=r"logits of token 4 are not .*--precision float32"):
        listen()
    assert [type(event) for event in seen] == [Prefilled, *[TokenText] * 3]
    assert len(released) == 1
    assert len(engine.generate([noise(1)], QUESTION, EIGHT).token_ids) == 8  # it goes on


def test_a_batch_names_the_request(dense_artifact):
    engine = Engine.load(dense_artifact, "cpu", 1)
    released = of_a_state(engine, poisoned_at=2, row=1)
    requests = [([noise(1)], QUESTION), ([], "hello"), ([noise(2)], QUESTION)]
    with pytest.raises(CompExportError, match="logits of token 3 of request 3 are not finite"):
        engine.generate_batch(requests, EIGHT)
    assert len(released) == 1


def test_finished_sequences_are_not_checked(dense_artifact, dense):
    """Its rows get padding while the others continue."""
    alone = dense.generate([noise(1)], QUESTION, EIGHT)
    stop = alone.text[:1]
    engine = Engine.load(dense_artifact, "cpu", 1)
    of_a_state(engine, poisoned_at=2, row=0)
    options = GenerationOptions(max_new_tokens=8, ignore_eos=True, stop=(stop,))
    other = next(
        noise(seed)
        for seed in range(2, 40)
        if stop not in dense.generate([noise(seed)], QUESTION, EIGHT).text
    )
    first, second = engine.generate_batch([([noise(1)], QUESTION), ([other], QUESTION)], options)
    assert first.finish_reason == "stop"
    assert second.token_ids == dense.generate([other], QUESTION, EIGHT).token_ids


def test_image_features_are_checked(dense_artifact):
    """A softmax may hide a NaN from every logit."""
    engine = Engine.load(dense_artifact, "cpu", 1)
    vision = engine._backend._vision
    run = vision.run

    def poisoned(feeds, wanted):
        (features, *rest), kept = run(feeds, wanted)
        features[0, 5, 7] = np.inf
        return [features, *rest], kept

    vision.run = poisoned
    with pytest.raises(CompExportError, match="features of the images are not finite"):
        engine.generate([noise(1)], QUESTION, EIGHT)


def test_the_command_reports_it_and_exits_with_an_error(loud, checkpoint, tmp_path):
    from tests.serve.random_llava import make_run

    home = loud[1]
    run = make_run(tmp_path, home / "onnx-float32", home / "onnx-float32")
    (run / "onnx-float16").symlink_to(home / "onnx-float16", target_is_directory=True)
    noise(1).save(tmp_path / "p.png")
    for more in ((), ("--temperature", "0.7")):
        words = ["run", str(run), "--image", str(tmp_path / "p.png"), "--prompt", QUESTION]
        result = CliRunner().invoke(cli, [*words, "--precision", "float16", *more])
        assert isinstance(result.exception, CompExportError)
        assert re.search(FLOAT16, str(result.exception))
        assert not result.stdout.strip()


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Engines of CLIP and of BLIP's tasks, loaded at the first use."""
    made = {}

    def of(kind):
        if kind not in made:
            home = tmp_path_factory.mktemp(kind)
            model = small_clip.random_clip(2) if kind == "clip" else small_blip.random_blip(kind, 2)
            model.save(home / "dense")
            export_artifact(home / "dense", home / "onnx", Origin("t"))
            made[kind] = home / "onnx"
        return load_engine(made[kind], threads=1)

    return of


def poison(engine, graph, output, value, row=-1):
    """Put a value into a row of a graph's output."""
    loaded = engine.graphs.graphs[graph]
    run, name = loaded.run, output

    def poisoned(feeds, numbers=(), kept=(), into=()):
        arrays, values = run(feeds, numbers, kept)
        if name in numbers:
            arrays[list(numbers).index(name)][row] = value
        return arrays, values

    loaded.run = poisoned


PICTURES = [noise(1), noise(2)]
TEXTS = ["a fox", "a ram and a wheel at the top"]


@pytest.mark.parametrize(
    ("kind", "graph", "output", "value", "words"),
    [
        ("clip", "vision_model", "image_embeds", np.nan, "embeddings of the images are not finite"),
        ("clip", "text_model", "text_embeds", np.inf, "embeddings of the candidates are not"),
        ("clip", "vision_model", "image_embeds", 0.0, "embedding of image 2 is zero"),
        ("clip", "text_model", "text_embeds", 0.0, "embedding of candidate 1 is zero"),
        ("retrieval", "text_model", "text_embeds", np.nan, "embeddings of the candidates are not"),
        ("retrieval", "itm_model", "logits", np.inf, "logits of matching are not finite"),
        ("statement", "text_encoder", "logits", np.nan, "logits of statement 1 are not finite"),
        ("statement", "vision_model", "last_hidden_state", np.inf, "states of the images are not"),
        ("question", "vision_model", "last_hidden_state", np.nan, "states of the image are not"),
        ("question", "decoder_model", "logits", np.nan, "logits of token 1 are not finite"),
    ],
)
def test_encoders_report_values_that_are_not_finite(kind, graph, output, value, words, encoders):
    engine = encoders(kind)

    def ask():
        if kind in ("clip", "retrieval"):
            return engine.rank(PICTURES, TEXTS if graph != "text_model" else TEXTS[:1])
        if kind == "statement":
            return engine.judge(PICTURES, TEXTS[1])
        return engine.generate(PICTURES[:1], TEXTS[0], EIGHT)

    ask()
    poison(engine, graph, output, value)
    with pytest.raises(CompExportError, match=words):
        ask()


def test_extreme_logits_give_probability_one(encoders):
    engine = encoders("statement")
    for value, expected in (((-5000.0, 5000.0), 1.0), ((5000.0, -5000.0), 0.0)):
        engine = encoders("statement")
        poison(engine, "text_encoder", "logits", value)
        assert engine.judge(PICTURES, TEXTS[1]).probability == expected


def test_the_logit_scale_must_be_finite(tmp_path):
    """The export refuses it, which would otherwise overflow itself."""
    for number, value in enumerate((float("nan"), 1e4, 100.0, -1e4)):
        adapter = small_clip.random_clip(2)
        with torch.no_grad():
            adapter.model.logit_scale.fill_(value)
        adapter.save(tmp_path / f"dense{number}")
        with pytest.raises(CompExportError, match=r"logit_scale.*compare the checkpoint"):
            export_artifact(tmp_path / f"dense{number}", tmp_path / "onnx", Origin("t"))
    assert not (tmp_path / "onnx").exists()


@pytest.mark.parametrize(
    ("precision", "remedy"),
    [
        ("float16", "--precision float32"),
        ("bfloat16", "--precision float32"),
        ("float32", "original checkpoint"),
        ("int8", "original checkpoint"),
        ("int4", "original checkpoint"),
    ],
)
def test_every_precision_has_a_remedy(precision, remedy):
    check_finite(np.array([-65504.0, 3e38]), "they", precision)
    for wrong in (np.nan, np.inf, -np.inf):
        with pytest.raises(CompExportError, match=f"they are .*--precision {precision}.*{remedy}"):
            check_finite(np.array([[0.0, wrong]]), "they", precision)
