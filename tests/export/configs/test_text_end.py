"""The token of a text that a CLIP pools: as in transformers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTextConfig, CLIPTextModel

from export.configs.clip import clip_of
from export.configs.text_end import read_to_end

VOCABULARY = 12
SIZES = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}


def model(eos_token_id):
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=9,
        bos_token_id=0,
        eos_token_id=eos_token_id,
        pad_token_id=1,
        **SIZES,
    )
    return CLIPTextModel(config).eval()


MODELS = {end: model(end) for end in (2, 7, 10)}


@pytest.mark.parametrize("eos_token_id", MODELS)
@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9))
def test_pooled_token_equals_transformers(eos_token_id, ids):
    end = clip_of({"model_type": "clip", "text_config": {"eos_token_id": eos_token_id}}, "here")
    read = read_to_end(np.array(ids), end.end_of_text)
    with torch.no_grad():
        expected = MODELS[eos_token_id](torch.tensor([ids])).pooler_output[0]
        states = MODELS[eos_token_id](torch.from_numpy(read)[None]).last_hidden_state[0]
    assert torch.allclose(states[-1], expected, atol=1e-6)


def test_older_artifacts_pool_the_last_token():
    ids = np.array([0, 7, 5])
    assert read_to_end(ids, None) is ids
