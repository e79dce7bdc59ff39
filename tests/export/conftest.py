"""Tiny checkpoints that several tests read."""

import pytest

from tests.export.tiny import save_checkpoint, tiny_config, tiny_model


@pytest.fixture(scope="session")
def gqa(tmp_path_factory):
    """A model with 4 query heads on 2 KV heads, and its checkpoint."""
    model = tiny_model(tiny_config(kv_heads=2))
    return model, save_checkpoint(model, tmp_path_factory.mktemp("gqa") / "model")


@pytest.fixture(scope="session")
def mha(tmp_path_factory):
    """A model with as many KV heads as query heads, and its checkpoint."""
    model = tiny_model(tiny_config(kv_heads=4), seed=1)
    return model, save_checkpoint(model, tmp_path_factory.mktemp("mha") / "model")


@pytest.fixture(scope="session")
def qwen(tmp_path_factory):
    """A SigLIP tower and a Qwen3 decoder with 6 query heads on 2 KV heads, and its checkpoint."""
    config = tiny_config(
        kv_heads=2, decoder="qwen3", tower="siglip", text_head_dim=16, text_num_attention_heads=6
    )
    model = tiny_model(config, seed=4)
    return model, save_checkpoint(model, tmp_path_factory.mktemp("qwen") / "model")
