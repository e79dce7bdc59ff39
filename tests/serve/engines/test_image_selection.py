"""Image tokens selected after the vision tower, in engines and in their ONNX graphs."""

import numpy as np
import pytest

from comp.plan import ImageSelection
from export.exporter import Origin, export_artifact
from export.graph.builder import Target
from export.tensorrt.build.directory import build_engines
from export.tensorrt.build.engine import BuildOptions
from export.tensorrt.library import find_tensorrt
from export.tensorrt.limits import Limits
from serve.engines.llava import Engine
from serve.generation.options import GenerationOptions
from tests.fake_gpu import install
from tests.serve.random_llava import IMAGE_TOKENS, noise

LIMITS = Limits(max_batch=2, images=2, max_prompt=48, max_new_tokens=12)
OPTIONS = GenerationOptions(max_new_tokens=6, ignore_eos=True)
CHOSEN = ImageSelection(tower_tokens=IMAGE_TOKENS, dominant=7, contextual=2)
REQUESTS = [
    ([noise(1)], "where is the fox?"),
    ([noise(2)], "where is the cat?"),
    ([noise(1), noise(2)], "more than one?"),
    ([], "hello you"),
]


@pytest.fixture(scope="module")
def artifact(checkpoint, plan, tmp_path_factory):
    """A standard artifact of a plan that chooses image tokens, and drops some of them later."""
    choosing = plan.model_copy(update={"image_selection": CHOSEN})
    directory = tmp_path_factory.mktemp("choosing") / "onnx-standard"
    origin, target = Origin.of_plan(choosing), Target("standard", "float32")
    export_artifact(checkpoint.path, directory, origin, target, choosing)
    return directory


def test_batches_keep_the_tokens_of_single_answers(artifact):
    engine = Engine.load(artifact, device="cpu", threads=1)
    together = engine.generate_batch(REQUESTS, OPTIONS, batch_size=2)
    for (images, prompt), answer in zip(REQUESTS, together, strict=True):
        alone = engine.generate(images, prompt, OPTIONS)
        assert answer.token_ids == alone.token_ids
        assert answer.image_tokens == len(images) * CHOSEN.count
        assert answer.kept.to_dict() == alone.kept.to_dict()
        assert answer.kept.lines() == alone.kept.lines()
        assert [each.size for each in answer.kept.selected.by_image] == [7] * len(images)
        for image in range(len(images)):
            (_, first), *later = answer.kept.seen(image)
            assert all(np.isin(kept, first).all() for _, kept in later)
            assert first.max() < IMAGE_TOKENS


@pytest.mark.slow
def test_engines_answer_and_keep_as_the_graphs(artifact, monkeypatch):
    pytest.importorskip("tensorrt_rtx", reason="pip install -e '.[tensorrt-rtx]'")
    out = artifact.parent / "tensorrt-float32"
    build_engines(find_tensorrt("tensorrt_rtx"), artifact, out, LIMITS, BuildOptions(("8.9",)))
    install(monkeypatch, [out], captures_graphs=True)
    native, graphs = Engine.load(out), Engine.load(artifact, device="cpu", threads=1)
    result = native.generate_batch(REQUESTS, OPTIONS, batch_size=2)
    expected = graphs.generate_batch(REQUESTS, OPTIONS, batch_size=2)
    for mine, theirs in zip(result, expected, strict=True):
        assert mine.token_ids == theirs.token_ids
        assert mine.kept.to_dict() == theirs.kept.to_dict()
