"""Tiny random LLaVA checkpoints, written by transformers, exported by the real exporter."""

import pytest
from transformers import CLIPImageProcessorPil, LlavaProcessor

from comp.plan import BlockPlan, PruningPlan, Workload
from comp.tiny_models.tiny_tokenizer import build_tokenizer
from export.exporter import Origin, export_artifact
from serve.engines.llava import Engine
from tests.serve.random_llava import (
    DROPS,
    FFN,
    HEADS,
    IMAGE_TOKENS,
    LAYERS,
    PATCH,
    SIDE,
    Checkpoint,
    make_run,
    noise,
    random_llava,
)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    tokenizer = build_tokenizer()
    model = random_llava(tokenizer)
    images = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    path = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return Checkpoint(path, model, processor)


@pytest.fixture(scope="session")
def plan():
    """A plan without half the heads and channels of some blocks, with drops at two places."""
    blocks = tuple(
        BlockPlan(
            part="language",
            index=index,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            intermediate_size=FFN,
            kept_key_value_heads=tuple(range(HEADS)) if index % 2 else (0, 3),
            kept_channels=tuple(range(0, FFN, 2)) if index % 2 else tuple(range(FFN)),
        )
        for index in range(LAYERS)
    )
    return PruningPlan(
        family="llava",
        model="tiny-random",
        method="test",
        rate=0.4,
        workload=Workload(image_tokens=IMAGE_TOKENS, text_tokens=20),
        macs_dense=1000,
        macs=600,
        blocks=blocks,
        drops=DROPS,
    )


@pytest.fixture(scope="session")
def dense_artifact(checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("dense") / "onnx-dense"
    export_artifact(checkpoint.path, out, Origin("tiny-random"))
    return out


@pytest.fixture(scope="session")
def compressed_artifact(checkpoint, plan, tmp_path_factory):
    out = tmp_path_factory.mktemp("compressed") / "onnx"
    export_artifact(checkpoint.path, out, Origin.of_plan(plan), plan=plan)
    return out


@pytest.fixture(scope="session")
def dense(dense_artifact):
    return Engine.load(dense_artifact, device="cpu", threads=1)


@pytest.fixture(scope="session")
def compressed(compressed_artifact):
    return Engine.load(compressed_artifact, device="cpu", threads=1)


@pytest.fixture(scope="session")
def picture():
    return noise(0)


@pytest.fixture
def run(dense_artifact, compressed_artifact, tmp_path):
    """A run directory with both artifacts, as the pipeline writes it."""
    return make_run(tmp_path, dense_artifact, compressed_artifact)
