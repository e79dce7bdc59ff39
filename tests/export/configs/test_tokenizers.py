"""Tokenizers of artifacts and slim checkpoints equal transformers' on the dense model's files."""

import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, processors
from transformers import AutoTokenizer

from comp.checkpoints.tokenizer_limits import check_ids
from comp.errors import CompExportError
from comp.families.tokenizing import load_tokenizer, save_tokenizer
from export.artifact.manifest import TextProcessing
from export.configs.tokenizer import read_tokenizer
from serve.engines.tokenizer import ArtifactTokenizer
from tests import tokenizer_files as files

KINDS = {
    "llama": files.llama,
    "llama, new form": lambda d: files.llama(d, metaspace=True),
    "llama, pads": lambda d: files.stored(files.llama(d), padding=64),
    "llama, cuts off": lambda d: files.stored(files.llama(d), truncation=4),
    "llama, no BOS": lambda d: files.llama(d, add_bos_token=False),
    "llama, EOS": lambda d: files.llama(d, add_eos_token=True),
    "llama, prefix space": lambda d: files.llama(d, add_prefix_space=False),
    "llama, token of the settings alone": lambda d: files.llama(
        d, extra_special_tokens=["<turn>"], tokenizer_class="PreTrainedTokenizerFast"
    ),
    "llama, splits special tokens": lambda d: files.llama(d, split_special_tokens=True),
    "llama, cleans up": lambda d: files.llama(d, clean_up_tokenization_spaces=True),
    "byte level": files.byte_level,
    "bert": files.bert,
    "bert, pads and cuts off": lambda d: files.stored(files.bert(d), 32, 6),
    "bert, vocab.txt": lambda d: files.bert(d, whole=False),
    "bert, cased": lambda d: files.bert(d, do_lower_case=False),
    "bert, accents": lambda d: files.bert(d, strip_accents=False),
    "bert, cleans up": lambda d: files.bert(d, clean_up_tokenization_spaces=True),
    "bert, splits special tokens": lambda d: files.bert(d, split_special_tokens=True),
    "clip": files.clip,
    "clip, vocab.json": lambda d: files.clip(d, whole=False),
    "clip, added token": lambda d: files.clip(d, added=("<sks>", "zebra")),
    "clip, pads": lambda d: files.stored(files.clip(d), padding=77),
}
TEXTS = (
    "the cat",
    "  A  CAT,\tthe Café!  ",
    "it's the cat's 25 cats .",
    "first <image> then </s> and <s>",
    "a <|endoftext|> b [SEP] c <turn> d <sks>zebras",
    "日本語 ☕ e\u0301 \u200b",
    "",
)
WORDS = st.text("the catCÉé'.,!? \n\t<>/s[]|", max_size=30) | st.text(max_size=12)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """By kind: transformers' tokenizer of the files, the artifact's, and that of the slim checkpoint's."""
    result = {}
    for kind, write in KINDS.items():
        home = tmp_path_factory.mktemp("kind")
        dense = write(home / "dense")
        theirs = AutoTokenizer.from_pretrained(dense)
        read = read_tokenizer(dense)
        read.write(home / "tokenizer.json")
        slim = home / "slim"
        save_tokenizer(load_tokenizer(dense), slim)
        model_type = json.loads((dense / "config.json").read_text())["model_type"]
        (slim / "config.json").write_text(json.dumps({"model_type": f"comp_{model_type}"}))
        ours = ArtifactTokenizer(home / "tokenizer.json", read.processing, positions=512)
        result[kind] = (theirs, ours, AutoTokenizer.from_pretrained(slim), slim)
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_equal_transformers(made, kind):
    theirs, ours, slim, _ = made[kind]
    for text in TEXTS:
        for special in (True, False):
            expected = theirs(text, add_special_tokens=special)["input_ids"]
            assert ours.encode(text, add_special_tokens=special) == expected
            assert slim(text, add_special_tokens=special)["input_ids"] == expected


@settings(max_examples=60, deadline=None)
@given(text=WORDS, kind=st.sampled_from(sorted(KINDS)))
def test_any_text_has_the_tokens_of_transformers(made, text, kind):
    theirs, ours, slim, _ = made[kind]
    expected = theirs(text)["input_ids"]
    assert ours.encode(text) == expected
    decoded = theirs.decode(expected, skip_special_tokens=True)
    assert slim.decode(expected, skip_special_tokens=True) == decoded
    assert slim(text)["input_ids"] == expected


@settings(max_examples=60, deadline=None)
@given(data=st.data(), kind=st.sampled_from(sorted(set(KINDS) - {k for k in KINDS if "clip" in k})))
def test_answers_read_as_in_transformers(made, data, kind):
    theirs, ours, _, _ = made[kind]
    ids = data.draw(st.lists(st.integers(0, len(theirs) - 1), max_size=12))
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_settings_next_to_the_tokenizer_have_an_effect(made):
    """Otherwise the comparison above would prove nothing."""
    bert, cased = made["bert"][1], made["bert, cased"][1]
    assert bert.encode("Cat") != cased.encode("Cat")
    assert made["bert, accents"][1].encode("café") != bert.encode("café")
    assert made["llama, splits special tokens"][1].encode("</s>") != made["llama"][1].encode("</s>")
    ids = bert.encode("a cat ' s", add_special_tokens=False)
    cleaned = made["bert, cleans up"][1]
    assert cleaned.decode(ids) != "a cat ' s"
    assert len(made["llama, pads"][1].encode("the cat")) < 10


@pytest.mark.parametrize("kind", ["llama", "bert, vocab.txt", "clip, vocab.json"])
def test_a_slim_tokenizer_loads_in_plain_transformers(made, kind, tmp_path):
    """transformers alone reads the same tokens, from ``tokenizer.json``."""
    theirs, _, _, slim = made[kind]
    assert (slim / "tokenizer.json").is_file()
    alone = tmp_path / "alone"
    shutil.copytree(slim, alone)
    (alone / "config.json").write_text(json.dumps({"model_type": "not_known_to_transformers"}))
    result = AutoTokenizer.from_pretrained(alone)
    for text in TEXTS:
        assert result(text)["input_ids"] == theirs(text)["input_ids"]


def test_tokenizers_without_their_files_are_refused(tmp_path):
    for write, gone, words in (
        (files.llama, "tokenizer.json", "cannot make a tokenizer"),
        (files.bert, "tokenizer.json", "lacks tokenizer.json, and vocab.txt"),
        (
            lambda d: files.clip(d, whole=False),
            "merges.txt",
            "cannot make a tokenizer",
        ),
    ):
        directory = write(tmp_path / gone / words[:5])
        (directory / gone).unlink()
        with pytest.raises(CompExportError, match=words):
            read_tokenizer(directory)


@pytest.mark.parametrize(
    ("name", "value"),
    [("padding", "max_length"), ("truncation", True)],
)
def test_settings_that_change_every_text_are_refused(tmp_path, name, value):
    with pytest.raises(CompExportError, match=f"says {name}"):
        read_tokenizer(files.bert(tmp_path / "it", **{name: value}))


def long_replacement(tokenizer):
    tokenizer.normalizer = normalizers.Replace("a", "b" * 2**20)


def replaced_again_and_again(tokenizer):
    parts = [normalizers.Replace("a", "a" * 60)] * 4
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Sequence(parts)])


def regex_replacement(tokenizer):
    tokenizer.normalizer = normalizers.Replace(Regex("."), "b" * 100)


def long_prefix(tokenizer):
    tokenizer.normalizer = normalizers.Prepend("b" * 5000)


def long_answer(tokenizer):
    tokenizer.decoder = decoders.Sequence([decoders.Replace("a", "b" * 10**5), decoders.Fuse()])


def long_frame(tokenizer):
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A" + " <s>" * 1000, pair="$A $B", special_tokens=[("<s>", 1)]
    )


def long_token(tokenizer):
    tokenizer.add_tokens(["b" * 10**5])


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (long_replacement, "writes 1048576 characters"),
        (replaced_again_and_again, "12960000 times as long"),
        (regex_replacement, "writes 100 characters"),
        (long_prefix, "writes 5000 characters"),
        (long_answer, "decoder"),
        (long_frame, "adds 1000 tokens"),
        (long_token, "a token of 100000 characters"),
    ],
)
def test_tokenizers_with_unbounded_output_are_refused(tmp_path, edit, words):
    directory = files.llama(tmp_path / "it")
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    edit(tokenizer)
    tokenizer.save(str(directory / "tokenizer.json"))
    with pytest.raises(CompExportError, match=words):
        read_tokenizer(directory)
    with pytest.raises(CompExportError, match=words):
        ArtifactTokenizer(directory / "tokenizer.json", TextProcessing(), positions=64)


def no_unknown(settings):
    settings["model"]["unk_token"] = "[NO]"


def panics(settings):
    settings["post_processor"]["special_tokens"] = {}


@pytest.mark.parametrize("edit", [no_unknown, panics])
def test_tokenizers_that_cannot_read_every_text_are_refused(tmp_path, edit):
    directory = files.bert(tmp_path / "it", tokenizer_class="PreTrainedTokenizerFast")
    path = directory / "tokenizer.json"
    changed = json.loads(path.read_text())
    edit(changed)
    path.write_text(json.dumps(changed))
    with pytest.raises(CompExportError, match="cannot"):
        ArtifactTokenizer(path, TextProcessing(), positions=64)
    with pytest.raises(CompExportError, match="cannot"):
        read_tokenizer(directory)


def test_values_other_than_text_are_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")).save(str(path))
    result = ArtifactTokenizer(path, TextProcessing(), positions=64)
    result.check("a word", "the prompt")
    for text, words in (
        (" \n", "the prompt is empty"),
        ("ab\ud83d", r"half of a surrogate pair \(U\+D83D, character 3\)"),
        ("a" * 70_000, "has 70000 characters, and 65536 are the most"),
    ):
        with pytest.raises(CompExportError, match=words):
            result.check(text, "the prompt")


def test_a_huge_token_id_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text('{"model": {"vocab": {"12345678": 5, "a": 2147483647}}}')
    with pytest.raises(
        CompExportError, match=r"token of id 2147483647, and 16777216 is the largest"
    ):
        check_ids(path, "take another")
    path.write_text('{"model": {"vocab": {"12345678": 5, "a": 100000}}}')
    check_ids(path, "take another")
    for space in ("", " "):  # with the truncation of the last batch
        path.write_text(f'{{"truncation":{space}{{"max_length":{space}2147483647}}}}')
        check_ids(path, "take another")
