"""The embedded SmolVLM loads like any other, and answers about pictures of several sizes."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, SmolVLMForConditionalGeneration

from comp.adapter import Forwarding
from comp.checkpoints.locate import resolve_model
from comp.data.emoji_scenes.examples import EmojiScenes
from comp.data.emoji_scenes.scenes import SIZES
from comp.families.loading import load_adapter

MIB = 2**20


def test_it_is_a_smolvlm_of_ten_mebibytes():
    directory = resolve_model("tiny-smolvlm")
    assert (directory / "model.safetensors").stat().st_size <= 10 * MIB
    model = AutoModelForImageTextToText.from_pretrained(directory, local_files_only=True)
    assert type(model) is SmolVLMForConditionalGeneration
    assert model.dtype == torch.bfloat16
    assert model.config.text_config.num_key_value_heads == 4


@pytest.mark.slow
@pytest.mark.parametrize("size", [SIZES[0], SIZES[3]])
def test_it_reaches_the_figures_of_its_card(size):
    adapter = load_adapter(resolve_model("tiny-smolvlm"))
    examples = EmojiScenes("test", picture=size)
    batch = adapter.collate([examples[index] for index in range(48)])
    with torch.no_grad():
        right = adapter.score(batch, Forwarding()).correct
    # Below the card's figures by the chance variation of few examples.
    assert right.float().mean() >= 0.83
