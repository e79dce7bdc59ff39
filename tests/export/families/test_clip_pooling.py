"""The token of a text that a CLIP pools equals transformers', for old and new configurations."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, CLIPModel

from comp.errors import CompExportError
from comp.families.clip.forward import LEGACY_EOS, embed_texts
from comp.families.clip.slim import clip_options
from comp.families.encoder.forward import EncoderOptions
from export.configs.clip import clip_of
from export.configs.text_end import read_to_end
from export.graph.builder import Target
from tests.comp.small_clip import random_clip, random_plan
from tests.export.families.test_clip import Graphs
from tests.export.shapes import read_clip

EOS, BOS, PAD = 7, 3, 1
LENGTH = 9
TEXTS = {  # ids of one text; 150 to 199 are tokens that were added after the end of text
    "plain": [BOS, 20, 21, 22, EOS],
    "an end inside": [BOS, 20, EOS, 30, 31, EOS],
    "an added token": [BOS, 20, 160, 22, 23, EOS],
    "no end": [BOS, 20, 21],
    "the largest twice": [BOS, 199, 20, 199, EOS],
}


@pytest.fixture(scope="module", params=[EOS, LEGACY_EOS])
def saved(request, tmp_path_factory):
    """A checkpoint whose configuration names this end of text."""
    adapter = random_clip(4, image_size=56, positions=20)
    adapter.model.config.text_config.eos_token_id = request.param
    directory = tmp_path_factory.mktemp("pooling") / "dense"
    adapter.save(directory)
    return request.param, adapter, directory


def of_transformers(model, ids):
    with torch.no_grad():
        result = model.get_text_features(input_ids=torch.tensor([ids])).pooler_output
    return torch.nn.functional.normalize(result, dim=-1)[0]


@pytest.mark.parametrize("name", TEXTS)
def test_every_variant_pools_the_token_of_transformers(saved, tmp_path, name):
    eos, adapter, dense = saved
    ids = TEXTS[name]
    expected = of_transformers(CLIPModel.from_pretrained(dense), ids)
    rows = torch.tensor([ids + [PAD] * (LENGTH - len(ids))])
    mask = torch.tensor([[1] * len(ids) + [0] * (LENGTH - len(ids))])
    with torch.no_grad():
        ours = embed_texts(adapter.model, rows, mask, EncoderOptions()).embeds[0]
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    end = read_clip(dense).end_of_text
    assert end == ("largest" if eos == LEGACY_EOS else eos)
    graphs = Graphs(dense, tmp_path / "onnx", Target())
    read = read_to_end(np.array(ids), end)
    embeds, _ = graphs.run(graphs.text, {"input_ids": read[None]})
    np.testing.assert_allclose(embeds[0], expected, atol=2e-5)


@pytest.mark.parametrize("name", TEXTS)
def test_tokens_after_the_pooled_one_are_not_kept_or_counted(saved, tmp_path, name):
    _, adapter, _ = saved
    plan = random_plan(5, 0.6, 0.6, image_tokens=17, text_tokens=9)
    adapter.cut(plan).save(tmp_path / "slim")
    slim = AutoModel.from_pretrained(tmp_path / "slim").eval()
    ids = torch.tensor([TEXTS[name]])
    with torch.no_grad():
        whole = slim.embedded_texts(ids)
        short = torch.from_numpy(
            read_to_end(ids[0].numpy(), read_clip(tmp_path / "slim").end_of_text)
        )[None]
        alone = slim.embedded_texts(short)
    torch.testing.assert_close(whole.embeds, alone.embeds, atol=1e-6, rtol=0)
    counts = [int(each.encoded.entered.sum()) for each in (whole, alone)]
    assert counts == [short.shape[1]] * 2
    graphs = Graphs(tmp_path / "slim", tmp_path / "onnx", Target())
    embeds, kept = graphs.run(graphs.text, {"input_ids": short.numpy()})
    np.testing.assert_allclose(embeds, whole.embeds, atol=2e-5)
    expected = embed_texts(
        slim, short, torch.ones_like(short), clip_options(plan.drops, "language")
    )
    for layer, tokens in expected.encoded.kept.items():
        np.testing.assert_array_equal(kept[layer], tokens.index)


@pytest.mark.parametrize("eos", [None, [7, 8], "</s>", 7.0, True, -1])
def test_an_end_of_text_other_than_one_id_is_refused(eos):
    config = random_clip(0, image_size=56).model.config.to_dict()
    config["text_config"]["eos_token_id"] = eos
    with pytest.raises(CompExportError, match=r"text_config\.eos_token_id is"):
        clip_of(config, "config.json")


def test_an_end_of_text_of_zero_is_valid(tmp_path):
    config = random_clip(0, image_size=56).model.config.to_dict()
    config["text_config"]["eos_token_id"] = 0
    assert clip_of(config, "config.json").end_of_text == 0
    del config["text_config"]["eos_token_id"]
    assert clip_of(config, "config.json").end_of_text == 49407
    with pytest.raises(CompExportError, match="cannot read"):
        read_clip(tmp_path)
