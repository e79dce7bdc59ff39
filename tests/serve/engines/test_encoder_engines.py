"""CLIP's and BLIP's engines run natively, on a simulated GPU (``tests.serve.backends.test_tensorrt``).

The engines are real ones, built here; what a GPU would compute from them, ONNX Runtime computes from the
graphs they were built from.
"""

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from comp.errors import CompExportError
from export.exporter import Origin, export_artifact
from export.graph.builder import Target
from export.tensorrt.build.directory import build_engines, choose_limits
from export.tensorrt.build.engine import BuildOptions
from export.tensorrt.gpu import gpu_capability
from export.tensorrt.library import find_tensorrt
from export.tensorrt.manifest import load_engines
from serve.artifacts import flops_ratio, is_verified
from serve.evaluation.by_task import task_of
from serve.generation.options import GenerationOptions
from serve.loading import load_engine
from tests.comp import small_blip, small_clip
from tests.fake_gpu import install

pytest.importorskip("tensorrt_rtx", reason="builds engines: pip install -e '.[tensorrt-rtx]'")

KINDS = ("clip", *small_blip.TASKS)
READERS = ("question", "caption")
ASKED = {"max_batch": 3, "max_prompt": 24, "max_new_tokens": 12}
# Drawn from flat logits: the likeliest token of a random model is always the same.
OPTIONS = GenerationOptions(max_new_tokens=8, ignore_eos=True, temperature=20, seed=1)
TEXTS = ("is there a fox?", "a ram and a wheel at the top", "a fox", "what is left of the ram?")


def random_model(kind, width=32):
    """A model and a plan that cuts heads, channels and tokens of it."""
    if kind == "clip":
        return small_clip.random_clip(2, width=width), small_clip.random_plan(2)
    adapter = small_blip.random_blip(kind, seed=2, width=width)
    return adapter, small_blip.random_plan(adapter, seed=2)


def export(kind, home, precision="float32", width=32):
    """Standard artifacts of a model cut and whole."""
    model, plan = random_model(kind, width)
    model.save(home / "dense")
    target = Target("standard", precision)
    origins = {"": (Origin.of_plan(plan), plan), "-dense": (Origin("tiny"), None)}
    for dense, (origin, cut) in origins.items():
        export_artifact(home / "dense", home / f"onnx{dense}-standard", origin, target, cut)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Directories of a kind with artifacts and engines, made at the first use."""
    made = {}

    def of(kind):
        if kind not in made:
            home = tmp_path_factory.mktemp(kind)
            export(kind, home)
            for dense in ("", "-dense"):
                source, out = home / f"onnx{dense}-standard", home / f"tensorrt{dense}-float32"
                limits = choose_limits(source, **ASKED)
                build_engines(
                    find_tensorrt("tensorrt_rtx"), source, out, limits, BuildOptions(("8.9",))
                )
            made[kind] = home
        return made[kind]

    return of


@pytest.fixture
def pair(built, monkeypatch):
    """Of a kind the engines on the simulated GPU, the graphs in ONNX Runtime, and the GPU."""

    def of(kind, dense="", **machine):
        home = built(kind)
        names = [home / f"tensorrt{which}-float32" for which in ("", "-dense")]
        cuda, _ = install(monkeypatch, names, **machine)
        engines = load_engine(home / f"tensorrt{dense}-float32")
        return engines, load_engine(home / f"onnx{dense}-standard"), cuda

    return of


def pictures(count):
    return [each.image for each in small_blip.examples_of("caption", count, "test")]


def same_kept(result, expected):
    assert result.keys() == expected.keys()
    for place, rows in expected.items():
        assert all(np.array_equal(a, b) for a, b in zip(result[place], rows, strict=True))


@pytest.mark.parametrize("dense", ["", "-dense"])
@pytest.mark.parametrize("kind", ["clip", "retrieval"])
def test_rankings_equal_those_of_onnxruntime(pair, kind, dense):
    """More images and texts than the engines take at a time are run in turn."""
    native, graphs, _ = pair(kind, dense)
    result, expected = (each.rank(pictures(5), TEXTS) for each in (native, graphs))
    assert np.allclose(result.of_texts, expected.of_texts, atol=1e-4)
    assert np.allclose(result.of_images, expected.of_images, atol=1e-4)
    same_kept(result.kept.by_place, expected.kept.by_place)
    assert bool(expected.kept.by_place) == (not dense)


@pytest.mark.parametrize("dense", ["", "-dense"])
def test_judgements_equal_those_of_onnxruntime(pair, dense):
    native, graphs, _ = pair("statement", dense)
    shown = pictures(4)
    requests = [([shown[n % 4], shown[n % 3]], TEXTS[n % 2]) for n in range(9)]
    result, expected = (each.judge_batch(requests) for each in (native, graphs))
    for mine, theirs in zip(result, expected, strict=True):
        assert mine.probability == pytest.approx(theirs.probability, abs=1e-5)
        same_kept(mine.kept.by_place, theirs.kept.by_place)
    assert len({round(each.probability, 3) for each in expected}) > 2


@pytest.mark.parametrize("dense", ["", "-dense"])
@pytest.mark.parametrize("kind", READERS)
def test_answers_equal_those_of_onnxruntime(pair, kind, dense):
    native, graphs, _ = pair(kind, dense)
    shown = pictures(4)
    for image, text in zip(shown, TEXTS, strict=True):
        result, expected = (each.generate([image], text, OPTIONS) for each in (native, graphs))
        assert result.token_ids == expected.token_ids
        assert len(set(expected.token_ids)) > 2
        same_kept(result.kept.by_place, expected.kept.by_place)
    requests = [([image], TEXTS[0]) for image in shown[:3]] + [([shown[3]], TEXTS[1])]
    batches = [each.generate_batch(requests, OPTIONS, batch_size=3) for each in (native, graphs)]
    assert len({tuple(answer.token_ids for answer in batch) for batch in batches}) == 1
    assert (native.backend, native.device) == ("tensorrt", "cuda")
    assert native.provider.startswith("tensorrt_rtx 1.")


def test_the_largest_answer_fits(pair):
    """Use the longest prefix and the most tokens that the engines accept."""
    native, graphs, _ = pair("caption")
    options = GenerationOptions(max_new_tokens=ASKED["max_new_tokens"], ignore_eos=True)
    beginning = "a"
    while len(native._encode(f"{beginning} fox")) <= ASKED["max_prompt"]:
        beginning += " fox"
    image = pictures(1)
    result = native.generate(image, beginning, options)
    assert result.prompt_tokens == ASKED["max_prompt"]
    assert len(result.token_ids) == ASKED["max_new_tokens"]
    assert result.token_ids == graphs.generate(image, beginning, options).token_ids


def test_caches_stay_on_the_gpu(pair):
    """Of an answer only image and question states, kept places and logits come to the host."""
    native, _, cuda = pair("question")
    native.generate(pictures(1), TEXTS[0], OPTIONS)
    cuda.to_host.clear()
    made = len(cuda.blocks)
    answer = native.generate(pictures(1), TEXTS[0], OPTIONS)
    assert len(cuda.blocks) == made  # every buffer of the first request serves again
    manifest = native.manifest
    width = 4 * manifest.text.hidden_size
    kept = [8 * row.size for rows in answer.kept.by_place.values() for row in rows]
    read = min(rows[0].size for (part, _), rows in answer.kept.by_place.items() if part != "vision")
    states = [width * manifest.image_tokens, width * read]
    logits = [4 * manifest.decoder.vocab_size] * len(answer.token_ids)
    assert sorted(cuda.to_host) == sorted(kept + states + logits)


def test_interleaved_answers_are_independent(pair):
    """All share the buffers on the GPU: each continues from its own state."""
    native, graphs, cuda = pair("question")
    shown = pictures(3)
    streams = [
        native.stream([image], text, OPTIONS) for image, text in zip(shown, TEXTS, strict=False)
    ]
    tokens = [[] for _ in streams]
    alive = dict(enumerate(streams))
    while alive:
        for number, stream in list(alive.items()):
            event = next(stream, None)
            if event is None:
                del alive[number]
            elif hasattr(event, "token_id"):
                tokens[number].append(event.token_id)
    for result, image, text in zip(tokens, shown, TEXTS, strict=False):
        assert tuple(result) == graphs.generate([image], text, OPTIONS).token_ids
    assert cuda.streams == 1


@pytest.mark.parametrize("kind", READERS)
def test_answers_of_several_threads_are_independent(pair, kind):
    native, graphs, cuda = pair(kind)
    prompts = [([image], TEXTS[n % 4]) for n, image in enumerate(pictures(4) * 3)]
    with ThreadPoolExecutor(4) as pool:
        result = list(pool.map(lambda each: native.generate(*each, OPTIONS).token_ids, prompts))
    assert result == [graphs.generate(*each, OPTIONS).token_ids for each in prompts]
    assert cuda.streams <= 4


@pytest.mark.parametrize("kind", ["clip", "caption"])
def test_memory_is_released(pair, kind):
    native, _, cuda = pair(kind)
    if kind == "clip":
        native.rank(pictures(1), TEXTS)
    else:
        stream = native.stream(pictures(1), "", OPTIONS)
        next(stream)
        before = len(cuda.blocks)
        stream.close()  # an abandoned answer
        native.generate(pictures(1), "", GenerationOptions(max_new_tokens=1))
        assert len(cuda.blocks) == before
        del stream
    assert cuda.blocks
    del native
    gc.collect()
    assert not cuda.blocks


@pytest.mark.parametrize("kind", KINDS)
def test_texts_beyond_the_limit_are_refused(pair, kind):
    native, _, _ = pair(kind)
    long = " ".join(["fox"] * 30)
    prompts = {
        "statement": lambda: native.judge(pictures(2), long),
        "clip": lambda: native.rank(pictures(1), [long]),
        "retrieval": lambda: native.rank(pictures(1), [long]),
    }
    with pytest.raises(CompExportError, match=r"--max-prompt 24, this request has \d+") as caught:
        prompts.get(kind, lambda: native.stream(pictures(1), long))()
    assert "comp-export tensorrt --force" in str(caught.value)


def test_answers_beyond_the_limits_are_refused(pair):
    native, _, _ = pair("question")
    with pytest.raises(CompExportError, match="--max-new-tokens 12, this request has 13"):
        native.stream(pictures(1), TEXTS[0], GenerationOptions(max_new_tokens=13))
    requests = [([image], TEXTS[0]) for image in pictures(4)]
    with pytest.raises(CompExportError, match="--max-batch 3, this request has 4"):
        native.generate_batch(requests, OPTIONS, batch_size=4)


def test_a_full_gpu_is_reported(pair):
    native, _, _ = pair("clip", memory=2**12)
    with pytest.raises(CompExportError, match="GPU's memory is used up"):
        native.rank(pictures(1), TEXTS)


def test_options_of_onnxruntime_are_refused(pair, built):
    pair("clip")
    for options in ({"device": "cpu"}, {"provider": "cuda"}):
        with pytest.raises(CompExportError, match="leave it out"):
            load_engine(built("clip") / "tensorrt-float32", **options)


@pytest.mark.skipif(gpu_capability() is not None, reason="there is a GPU here")
def test_without_a_gpu_the_remedy_is_given(built):
    with pytest.raises(CompExportError, match="--backend onnxruntime"):
        load_engine(built("statement") / "tensorrt-float32")


@pytest.mark.parametrize("kind", KINDS)
def test_commands_read_the_manifest_of_engines(pair, built, kind):
    native, graphs, _ = pair(kind)
    home = built(kind)
    assert task_of(home / "tensorrt-float32") == graphs.manifest.task
    assert not is_verified(home / "tensorrt-float32")
    dense = load_engine(home / "tensorrt-dense-float32").manifest
    plan = random_model(kind)[1]
    assert flops_ratio(dense, native.manifest) == pytest.approx(
        flops_ratio(load_engine(home / "onnx-dense-standard").manifest, graphs.manifest)
    )
    assert native.manifest.drops == plan.drops
    files = load_engines(home / "tensorrt-float32").manifest.files
    assert native.manifest.size_bytes == sum(entry.bytes for entry in files)


@pytest.mark.gpu
@pytest.mark.skipif(gpu_capability() is None, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_answers_on_a_gpu_equal_onnxruntime(kind, precision, tmp_path):
    """Real engines, of the installed TensorRT, give the answers of ONNX Runtime."""
    export(kind, tmp_path, width=64)
    if precision != "float32":
        export(kind, tmp_path / "half", precision, width=64)
    home = tmp_path if precision == "float32" else tmp_path / "half"
    source, out = home / "onnx-standard", home / "tensorrt"
    limits = choose_limits(source, **ASKED)
    build_engines(find_tensorrt(), source, out, limits, BuildOptions((gpu_capability(),)))
    native, graphs = load_engine(out), load_engine(tmp_path / "onnx-standard")
    within = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.3}[precision]
    if kind in READERS:
        greedy = GenerationOptions(max_new_tokens=8, ignore_eos=True)
        result, expected = (
            each.generate(pictures(1), TEXTS[0], greedy) for each in (native, graphs)
        )
        if precision == "float32":
            assert result.token_ids == expected.token_ids
        assert len(result.token_ids) == 8
    elif kind == "statement":
        result, expected = (each.judge(pictures(2), TEXTS[0]) for each in (native, graphs))
        assert result.probability == pytest.approx(expected.probability, abs=within)
    else:
        result, expected = (each.embed_texts(TEXTS) for each in (native, graphs))
        assert np.abs(result.embeds - expected.embeds).max() < within
