"""Text in training: prompts equal the processor's; bad ones are refused before the weights are read."""

import json
import shutil

import pytest
from PIL import Image
from transformers import AutoTokenizer, BlipProcessor

from comp.checkpoints.chat_template import LLAVA_TEMPLATE
from comp.data.example import Example
from comp.errors import CompExportError
from comp.families.llava.batches import LlavaCollator
from comp.families.loading import load_adapter
from tests import tokenizer_files
from tests.comp.small import small_adapter
from tests.comp.small_blip import random_blip

PICTURE = Image.new("RGB", (20, 30), "red")
EACH = "{% for m in messages %}{% for c in m.content %}"
END = "{% endfor %}{% endfor %}"
SHOUTED = EACH + "{{ '<image>' if c.type == 'image' else c.text | trim | upper }}" + END
FRAMED = "{{ bos_token }}" + SHOUTED + "{{ eos_token }}"


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """A small checkpoint; its adapter."""
    adapter = small_adapter()
    path = tmp_path_factory.mktemp("llava")
    adapter.save(path)
    return path, adapter


@pytest.fixture
def copied(llava, tmp_path, no_weights):
    """A copy of the checkpoint whose weights cannot be read."""
    path = tmp_path / "copied"
    shutil.copytree(llava[0], path)
    return path


@pytest.mark.parametrize("template", [None, LLAVA_TEMPLATE, SHOUTED, FRAMED])
def test_prompts_are_those_of_the_processor(llava, template):
    processor = llava[1].processor
    theirs, tokenizer = processor.chat_template, processor.tokenizer.chat_template
    processor.chat_template = processor.tokenizer.chat_template = template
    try:
        collator = LlavaCollator(processor, llava[1].model.config)
        for question in ("what is it?", "  where is the fox?\n", "yes </s> no"):
            shown = {"type": "image", "image": PICTURE}
            turn = [{"role": "user", "content": [shown, {"type": "text", "text": question}]}]
            source = template or LLAVA_TEMPLATE
            expected = processor.apply_chat_template(
                turn, source, add_generation_prompt=True, tokenize=True, image_token="<image>"
            )
            assert collator.prompt_ids(question, PICTURE) == list(expected[0])
        if template is None:
            assert collator.prompt("a cat?") == "USER: <image>\na cat? ASSISTANT:"
    finally:
        processor.chat_template, processor.tokenizer.chat_template = theirs, tokenizer


def test_surplus_image_tokens_in_questions_and_answers_are_refused(llava):
    collator = LlavaCollator(llava[1].processor, llava[1].model.config)
    assert collator.prompt("<image> what?") == "USER: <image> what? ASSISTANT:"
    for question, answer, words in (
        ("<image> or <image>?", "yes", "shows <image> 2 times"),
        ("what?", "an <image>", "the answer 'an <image>' holds <image>"),
    ):
        with pytest.raises(CompExportError, match=words):
            collator([Example(PICTURE, question, answer, "question")])


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ messages[0].content[-1].text }}", "without <image> once"),
        ("<image> only", "without the words of the prompt"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "range"),
        ("{{ 'a' * 10 ** 10 }}", "memory"),
        ("{% endfor %}", "fails"),
    ],
)
def test_templates_are_refused_before_weights_are_read(copied, template, words):
    (copied / "chat_template.jinja").write_text(template)
    with pytest.raises(CompExportError, match=words):
        load_adapter(copied)


def test_tokenizers_are_refused_before_weights_are_read(copied):
    with pytest.raises(CompExportError, match="the weights are read"):
        load_adapter(copied)  # it has no other fault
    config = json.loads((copied / "config.json").read_text())
    names = ("image_token_index", "image_token_id")
    for wrong, words in ((5, "reads?|without"), (10**6, "does not read None as token 1000000")):
        changed = {name: wrong for name in names if name in config}
        (copied / "config.json").write_text(json.dumps(config | changed))
        with pytest.raises(CompExportError, match=words):
            load_adapter(copied)
    (copied / "config.json").write_text(json.dumps(config))
    (copied / "tokenizer.json").unlink()
    with pytest.raises(CompExportError, match="cannot load the processor"):
        load_adapter(copied)


def test_older_tokenizer_files_are_converted(tmp_path):
    """A BLIP with ``vocab.txt`` alone: its slim checkpoint reads the same and needs no conversion."""
    dense, slim = tmp_path / "dense", tmp_path / "slim"
    adapter = random_blip("caption")
    adapter.save(dense)
    (dense / "tokenizer.json").unlink()
    words = tokenizer_files.bert(tmp_path / "words", whole=False)
    for name in ("vocab.txt", "tokenizer_config.json"):
        shutil.copyfile(words / name, dense / name)
    load_adapter(dense).save(slim)
    assert (slim / "tokenizer.json").is_file()
    expected = AutoTokenizer.from_pretrained(words)
    for text in ("a cat", "The Café's cats.", "[SEP] a"):
        assert BlipProcessor.from_pretrained(slim).tokenizer(text).input_ids == (
            expected(text).input_ids
        )


def test_padding_of_the_last_batch_is_not_saved(llava, tmp_path):
    processor = llava[1].processor
    processor.tokenizer(["a", "a b c"], padding="max_length", max_length=40, truncation=True)
    llava[1].save(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    assert saved["padding"] is None
    assert saved["truncation"] is None
