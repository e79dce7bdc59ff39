"""Every official checkpoint, small, in every spelling: users get the results of transformers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from transformers import AutoProcessor

from comp.cli import cli
from comp.errors import CompExportError
from comp.families.loading import load_adapter
from export.exporter import Origin, export_artifact
from serve.generation.options import GenerationOptions
from serve.loading import load_engine
from tests.official.build import ANSWER, PICTURES, build, picture
from tests.official.catalogue import CHECKPOINTS
from tests.official.compare import (
    CAPTIONS,
    COMPARISONS,
    QUESTIONS,
    originals,
    pictures,
    same_pixels,
)

SPELLINGS = [
    pytest.param(official, spelling, id=f"{official.hub_id.rpartition('/')[2]}: {spelling.name}")
    for official in CHECKPOINTS
    for spelling in official.spellings
]
RECORDS = 42  # a split needs 40
QUICK = ("--recover", "none", "--stages", "1", "--steps-per-stage", "0")
QUICK += ("--calibration", "4", "--validation", "2", "--batch-size", "4")
QUICK += ("--dtype", "float32", "--device", "cpu", "--rate", "0.1")


def called(*words: object) -> dict:
    result = CliRunner().invoke(cli, [str(word) for word in (*words, "--json")])
    assert result.exit_code == 0, f"{words[0]}: {result.output} {result.exception!r}"
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Pictures, with questions and captions."""
    folder = tmp_path_factory.mktemp("data")
    for name, sizes in PICTURES.items():
        picture(*sizes).save(folder / f"{name}.png")
    names = list(PICTURES)
    for kind, words in (("questions", QUESTIONS), ("captions", CAPTIONS)):
        with (folder / f"{kind}.jsonl").open("w", encoding="utf-8") as file:
            for number in range(RECORDS):
                phrase = words[number % len(words)]
                record = {"image": f"{names[number % 3]}.png"}
                if kind == "questions":
                    record |= {"question": phrase, "answer": "a red cat"}
                else:
                    record |= {"caption": f"{phrase} {number}"}
                print(json.dumps(record), file=file)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("official", "spelling"), SPELLINGS)
def test_answers_equal_transformers(official, spelling, tmp_path, folder):
    checkpoint = build(official, spelling, tmp_path / "dense")
    artifact = tmp_path / "run" / "onnx-dense"
    if spelling.every_verb:
        _prune_and_prove(official.task, checkpoint, tmp_path / "run", folder)
    else:
        export_artifact(checkpoint, artifact, Origin(official.hub_id))
    architecture = spelling.config["architectures"][0]
    model, processor = originals(checkpoint, architecture)
    engine = load_engine(artifact, "cpu")
    same_pixels(processor, engine)
    COMPARISONS[architecture](model, processor, engine, artifact / "tokenizer.json")
    if spelling.every_verb:
        _run(official.task, engine, tmp_path / "run", folder / "wide.png")


@pytest.mark.parametrize(
    ("fields", "phrase"),
    [
        (None, "cannot write the tokens of an image"),  # the first releases: transformers fails too
        ({"patch_size": 28}, "writes 9 tokens of an image, and its tower gives 36"),
        ({"vision_feature_select_strategy": "full"}, "writes 37 tokens of an image"),
    ],
    ids=["none", "patches", "strategy"],
)
def test_a_processor_that_miscounts_images_is_refused(fields, phrase, tmp_path):
    official, name = CHECKPOINTS[0], "processor_config.json"
    (spelling,) = (each for each in official.spellings if each.names == "published")
    checkpoint = build(official, spelling, tmp_path / "dense")
    if fields is None:
        (checkpoint / name).unlink()
    else:
        (checkpoint / name).write_text(json.dumps(spelling.files[name] | fields))
    with pytest.raises(CompExportError, match=phrase) as refused:
        load_adapter(checkpoint)
    assert '{"patch_size": 14, "num_additional_image_tokens": 1' in str(refused.value)


def _prune_and_prove(task: str, checkpoint: Path, run: Path, folder: Path) -> None:
    data = ("--data", folder / f"{'questions' if task == 'questions' else 'captions'}.jsonl")
    called("prune", "--model", checkpoint, "--out", run, *QUICK, *data)
    called("onnx", run, "--no-check")  # verify checks all of it
    assert called("verify", run, "--questions", "4", "--max-new-tokens", "4", *data)["ok"]
    _same_processors(checkpoint, run / "checkpoint")


def _run(task: str, engine: Any, run: Path, image: Path) -> None:
    """``run`` gives the answers of the engine, which are those of transformers."""
    if task == "retrieval":
        texts = [word for caption in CAPTIONS for word in ("--prompt", caption)]
        answer = called("run", run, "--dense", "--image", image, *texts)
        right = engine.rank([image], CAPTIONS).of_texts
        assert np.allclose(answer["scores"], right, atol=1e-5)
        return
    prompt = QUESTIONS[0] if task == "questions" else ""
    request = ("--prompt", prompt) if prompt else ()
    words = ("--dense", "--image", image, *request, "--max-new-tokens", ANSWER)
    right = engine.generate([image], prompt, GenerationOptions(max_new_tokens=ANSWER))
    assert called("run", run, *words)["text"] == right.text


def _same_processors(dense: Path, slim: Path) -> None:
    """``AutoProcessor`` of the slim checkpoint gives the same tokens and pixels."""
    first, second = (AutoProcessor.from_pretrained(each) for each in (dense, slim))
    for text in (*QUESTIONS, *CAPTIONS):
        assert first.tokenizer(text)["input_ids"] == second.tokenizer(text)["input_ids"]
    for image in pictures():
        each = [
            processor.image_processor(images=[image], return_tensors="np")["pixel_values"]
            for processor in (first, second)
        ]
        assert np.array_equal(*each)
