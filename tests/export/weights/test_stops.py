"""The tokens that end an answer equal the ``generation_config`` that transformers loads."""

import json

import pytest
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    LlavaForConditionalGeneration,
)

from comp.checkpoints.generation_settings import NEUTRAL, check_greedy
from comp.checkpoints.stops import stop_tokens
from comp.errors import CompExportError
from comp.families.loading import load_adapter
from export.configs.special_tokens import read_special_tokens
from export.configs.tokenizer import read_tokenizer
from export.weights.slim import write_slim_checkpoint
from tests.export.tiny import IMAGE_TOKEN, make_plan, save_checkpoint, tiny_config, tiny_model

ABSENT = object()
GENERATION = (None, {}, {"eos_token_id": None}, {"eos_token_id": 5}, {"eos_token_id": [6, 5]})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tiny_model(tiny_config()), tmp_path_factory.mktemp("stops") / "dense")


def written(directory, generation, text, whole):
    """Write each file; ``None`` for ``generation`` removes the file."""
    path = directory / "config.json"
    config = json.loads(path.read_text())
    for values, stop in ((config["text_config"], text), (config, whole)):
        values.pop("eos_token_id", None)
        if stop is not ABSENT:
            values["eos_token_id"] = stop
    path.write_text(json.dumps(config))
    other = directory / "generation_config.json"
    other.unlink(missing_ok=True)
    if generation is not None:
        other.write_text(json.dumps(generation))
    return config


@pytest.mark.parametrize("generation", GENERATION)
def test_stop_tokens_equal_transformers(checkpoint, generation):
    for text in (ABSENT, None, 7, [8, 7]):
        for whole in (ABSENT, 9) if generation is None else (ABSENT,):
            config = written(checkpoint, generation, text, whole)
            model = LlavaForConditionalGeneration.from_pretrained(checkpoint)
            expected = model.generation_config.eos_token_id
            if expected is None:
                for read in (load_adapter, lambda path: stop_tokens(path, config)):  # noqa: B023
                    with pytest.raises(CompExportError, match="names no EOS token"):
                        read(checkpoint)
                continue
            listed = expected if isinstance(expected, list) else [expected]
            result = read_special_tokens(
                checkpoint, config, IMAGE_TOKEN, read_tokenizer(checkpoint)
            )
            assert list(result.eos_token_ids) == listed


@pytest.mark.parametrize("generation", [None, {"eos_token_id": [6, 5]}])
def test_slim_checkpoints_keep_the_stop_tokens(checkpoint, tmp_path, generation):
    written(checkpoint, generation, [8, 7], ABSENT)
    expected = [8, 7] if generation is None else [6, 5]
    plan = make_plan(tiny_config())
    load_adapter(checkpoint).cut(plan).save(tmp_path / "prune")
    write_slim_checkpoint(checkpoint, plan, tmp_path / "cut")
    for name in ("prune", "cut"):
        model = AutoModelForImageTextToText.from_pretrained(tmp_path / name)
        assert model.generation_config.eos_token_id == expected
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert list(stop_tokens(tmp_path / name, config)) == expected


@pytest.mark.parametrize("stop", ["</s>", 2.0, True, -1, 10**9, [2, "x"], [], {"a": 1}])
def test_a_bad_stop_token_is_refused_with_its_file(checkpoint, stop):
    config = written(checkpoint, {"eos_token_id": stop}, 2, ABSENT)
    with pytest.raises(CompExportError, match=r"generation_config\.json: eos_token_id"):
        stop_tokens(checkpoint, config)
    config = written(checkpoint, None, stop, ABSENT)
    with pytest.raises(CompExportError, match=r"config\.json: text_config\.eos_token_id"):
        stop_tokens(checkpoint, config)


def test_settings_that_change_greedy_answers_are_refused_by_name(checkpoint):
    for name, value in (("repetition_penalty", 1.3), ("suppress_tokens", [4]), ("min_length", 3)):
        config = written(checkpoint, {"eos_token_id": 5, name: value}, ABSENT, ABSENT)
        reads = (
            load_adapter,
            lambda path: read_special_tokens(path, config, IMAGE_TOKEN, read_tokenizer(path)),  # noqa: B023
        )
        for read in reads:
            with pytest.raises(CompExportError, match=rf"generation_config.json: {name} is"):
                read(checkpoint)
    neutral = {name: values[0] for name, values in NEUTRAL.items() if values}
    unset = dict.fromkeys(NEUTRAL)
    for settings in (neutral, unset, {"do_sample": True, "temperature": 0.2, "num_beams": 3}):
        written(checkpoint, {"eos_token_id": 5} | settings, ABSENT, ABSENT)
        check_greedy(checkpoint)


def test_cut_refuses_the_settings_that_onnx_refuses(checkpoint, tmp_path):
    plan = make_plan(tiny_config())
    for stop, words in (
        ({"repetition_penalty": 1.3}, "repetition_penalty is"),
        ({}, "no EOS token"),
    ):
        written(checkpoint, ({"eos_token_id": 5} if stop else {}) | stop, ABSENT, ABSENT)
        with pytest.raises(CompExportError, match=words):
            write_slim_checkpoint(checkpoint, plan, tmp_path / "cut")
        assert not (tmp_path / "cut").exists()


def test_every_such_setting_is_one_of_transformers():
    assert set(NEUTRAL) <= set(GenerationConfig().to_dict())
