"""Native TensorRT: buffers, caches, CUDA graphs and refusals, on a GPU that is simulated.

The engines are real ones, built here; what a GPU would compute from them, ONNX Runtime computes from
the graphs they were built from. ``test_answers_on_a_gpu_equal_onnxruntime`` runs the same on a real one.
"""

import gc
import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from comp.cli import cli
from comp.errors import CompExportError
from export.exporter import Origin, export_artifact
from export.graph.builder import Target
from export.tensorrt.build.directory import build_engines
from export.tensorrt.build.engine import BuildOptions
from export.tensorrt.gpu import gpu_capability
from export.tensorrt.library import find_tensorrt
from export.tensorrt.limits import Limits
from export.tensorrt.manifest import EngineManifest
from serve.engines.llava import Engine
from serve.generation.options import GenerationOptions
from serve.generation.results import TokenText
from tests.fake_gpu import install
from tests.serve.random_llava import noise

pytest.importorskip("tensorrt_rtx", reason="builds engines: pip install -e '.[tensorrt-rtx]'")

LIMITS = Limits(max_batch=3, images=2, max_prompt=64, max_new_tokens=24)
OPTIONS = GenerationOptions(max_new_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def built(checkpoint, plan, tmp_path_factory):
    """A directory with a compressed and a dense standard artifact and their engines."""
    home = tmp_path_factory.mktemp("engines")
    target = Target("standard", "float32")
    export_artifact(checkpoint.path, home / "onnx-standard", Origin.of_plan(plan), target, plan)
    export_artifact(checkpoint.path, home / "onnx-dense-standard", Origin("tiny"), target)
    rtx = find_tensorrt("tensorrt_rtx")
    for dense in ("", "-dense"):
        source, out = home / f"onnx{dense}-standard", home / f"tensorrt{dense}-float32"
        build_engines(rtx, source, out, LIMITS, BuildOptions(("8.9",)))
    return home


@pytest.fixture(params=[True, False], ids=["graphs by TensorRT", "graphs by us"])
def gpu(built, monkeypatch, request):
    directories = [built / "tensorrt-float32", built / "tensorrt-dense-float32"]
    return install(monkeypatch, directories, captures_graphs=request.param)


@pytest.fixture
def engine(gpu, built):
    return Engine.load(built / "tensorrt-float32")


QUESTIONS = [
    ([noise(1)], "where is the fox?"),
    ([], "hello you"),
    ([noise(1), noise(2)], "more than one?"),
    ([noise(3)], "count the animals on the left."),
]


@pytest.mark.parametrize("name", ["tensorrt-float32", "tensorrt-dense-float32"])
def test_answers_equal_those_of_onnxruntime(gpu, built, dense, compressed, name):
    engine = Engine.load(built / name)
    peer = dense if "dense" in name else compressed
    for images, prompt in QUESTIONS:
        result = engine.generate(images, prompt, OPTIONS)
        expected = peer.generate(images, prompt, OPTIONS)
        assert result.token_ids == expected.token_ids
        assert len(set(expected.token_ids)) > 2
        assert result.kept.by_layer.keys() == expected.kept.by_layer.keys()
        for layer, places in expected.kept.by_layer.items():
            assert np.array_equal(result.kept.by_layer[layer], places)
    assert engine.backend == "tensorrt"
    assert engine.device == "cuda"
    assert engine.provider.startswith("tensorrt_rtx 1.")


def test_batches_equal_single_answers(engine, compressed):
    """Batches of different sizes follow each other: buffers bound for one must not serve the next."""
    requests = [([noise(n)], f"where is {word}?") for n, word in enumerate(["it", "he", "a"])]
    requests += [([], "hello you"), ([], "hello me"), ([noise(7)], "how many are there?")]
    result = engine.generate_batch(requests, OPTIONS, batch_size=3)
    expected = compressed.generate_batch(requests, OPTIONS, batch_size=3)
    assert [a.token_ids for a in result] == [a.token_ids for a in expected]


def test_only_logits_and_kept_places_are_copied_to_the_host(engine, gpu):
    cuda, _ = gpu
    cuda.to_host.clear()
    answer = engine.generate([noise(0)], "where is the fox?", OPTIONS)
    vocabulary = engine.manifest.decoder.vocab_size
    kept = [8 * places.size for places in answer.kept.by_layer.values()]
    assert sorted(cuda.to_host) == sorted([*kept, *[4 * vocabulary] * len(answer.token_ids)])


def test_steps_replay_a_cuda_graph(engine, gpu):
    """TensorRT-RTX captures by itself; for TensorRT the second step is captured and then replayed."""
    cuda, module = gpu
    engine.generate([noise(0)], "where is the fox?", OPTIONS)
    steps = OPTIONS.max_new_tokens - 1
    if hasattr(module, "CudaGraphStrategy"):
        assert cuda.launches == 0
    else:
        assert cuda.launches == steps - 1
        engine.generate([noise(1)], "where is the dog?", OPTIONS)
        assert cuda.launches == 2 * steps - 1  # the next request replays the same graph


def test_concurrent_requests_are_independent(engine, compressed, gpu):
    """Interleave three answers: each equals the single answer; later ones reuse the buffers."""
    cuda, _ = gpu
    streams = [engine.stream(images, prompt, OPTIONS) for images, prompt in QUESTIONS[:3]]
    tokens = [[], [], []]
    alive = dict(enumerate(streams))
    while alive:
        for number, stream in list(alive.items()):
            event = next(stream, None)
            if event is None:
                del alive[number]
            elif isinstance(event, TokenText):
                tokens[number].append(event.token_id)
    for result, (images, prompt) in zip(tokens, QUESTIONS, strict=False):
        assert tuple(result) == compressed.generate(images, prompt, OPTIONS).token_ids
    made = cuda.streams
    assert made == 3
    for images, prompt in QUESTIONS:
        engine.generate(images, prompt, OPTIONS)
    assert cuda.streams == made


def test_an_abandoned_answer_releases_its_buffers(engine, gpu):
    cuda, _ = gpu
    stream = engine.stream([noise(0)], "where is the fox?", OPTIONS)
    next(stream)
    stream.close()
    engine.generate([noise(0)], "where is the fox?", OPTIONS)
    assert cuda.streams == 1


def test_memory_is_released(gpu, built):
    cuda, _ = gpu
    engine = Engine.load(built / "tensorrt-float32")
    engine.generate([noise(0)], "where is the fox?", OPTIONS)
    assert cuda.blocks
    del engine
    gc.collect()
    assert not cuda.blocks


@pytest.mark.parametrize(
    ("images", "words", "new_tokens", "limit"),
    [
        (3, 1, 4, "--images 2"),
        (1, 90, 4, "--max-prompt 64"),
        (1, 1, 25, "--max-new-tokens 24"),
    ],
)
def test_requests_beyond_the_limits_are_refused(engine, images, words, new_tokens, limit):
    pictures = [noise(n) for n in range(images)]
    options = GenerationOptions(max_new_tokens=new_tokens)
    with pytest.raises(CompExportError, match=limit) as caught:
        engine.stream(pictures, " ".join(["fox"] * words), options)
    assert "comp-export tensorrt --force" in str(caught.value)


def test_the_largest_request_fits(gpu, built, dense):
    """Every token of every kind that the limits allow, and every new token."""
    engine = Engine.load(built / "tensorrt-dense-float32")
    options = GenerationOptions(max_new_tokens=LIMITS.max_new_tokens, ignore_eos=True)
    pictures, words = [noise(1), noise(2)], 1
    encode = engine._prompts.encode
    while encode(" ".join(["fox"] * (words + 1)), 2).text.size <= LIMITS.max_prompt:
        words += 1
    prompt = " ".join(["fox"] * words)
    result = engine.generate(pictures, prompt, options)
    assert len(result.token_ids) == LIMITS.max_new_tokens
    assert result.token_ids == dense.generate(pictures, prompt, options).token_ids


def test_a_batch_beyond_the_limit_is_refused(engine):
    requests = [([noise(n)], "where is it?") for n in range(4)]
    with pytest.raises(CompExportError, match="--max-batch 3"):
        engine.generate_batch(requests, OPTIONS, batch_size=4)


def test_a_keep_factor_is_refused(engine):
    options = GenerationOptions(keep_factor=0.5)
    with pytest.raises(CompExportError, match="keep ratios built in"):
        engine.stream([noise(0)], "where?", options)


def test_options_of_onnxruntime_are_refused(gpu, built):
    for options in ({"device": "cpu"}, {"provider": "cuda"}):
        with pytest.raises(CompExportError, match=r"leave it out"):
            Engine.load(built / "tensorrt-float32", **options)


def test_a_full_gpu_is_reported(built, monkeypatch):
    install(monkeypatch, [built / "tensorrt-float32"], memory=2**16)
    engine = Engine.load(built / "tensorrt-float32")
    with pytest.raises(CompExportError, match="GPU's memory is used up"):
        engine.generate([noise(0)], "where?", OPTIONS)


def test_another_gpu_is_refused_by_name(built, monkeypatch):
    install(monkeypatch, [built / "tensorrt-float32"], capability="9.0")
    with pytest.raises(
        CompExportError, match=r"8\.9, this GPU has 9\.0.*--compute-capability 9\.0"
    ):
        Engine.load(built / "tensorrt-float32")


@pytest.mark.skipif(gpu_capability() is not None, reason="there is a GPU here")
def test_without_a_gpu_the_remedy_is_given(built):
    with pytest.raises(CompExportError, match="--backend onnxruntime"):
        Engine.load(built / "tensorrt-float32")


def test_streamed_weights_get_a_budget(built, tmp_path, monkeypatch):
    directory = tmp_path / "tensorrt-float32"
    shutil.copytree(built / "tensorrt-float32", directory)
    (tmp_path / "onnx-standard").symlink_to(built / "onnx-standard")
    result = json.loads((directory / "manifest.json").read_text()) | {"weights": "streamed"}
    EngineManifest.model_validate(result).save(directory)
    _, module = install(monkeypatch, [directory])
    Engine.load(directory).generate([noise(0)], "where?", OPTIONS)
    assert [engine.budget for engine in module.engines] == [1234] * 3


@pytest.fixture
def engine_run(run, built):
    """A run with artifacts of both kinds."""
    for source in built.iterdir():
        shutil.copytree(source, run / source.name)
    return run


def invoke(*arguments):
    return CliRunner().invoke(cli, [str(a) for a in arguments], catch_exceptions=False)


def test_the_commands_run_engines(engine_run, gpu, compressed, picture, tmp_path):
    path = tmp_path / "picture.png"
    picture.save(path)
    words = ("--backend", "tensorrt", "--precision", "float32", "--json")
    question = ("--image", path, "--prompt", "where is the fox?", "--max-new-tokens", 6)
    result = json.loads(invoke("run", engine_run, *question, *words).stdout)
    expected = compressed.generate([path], "where is the fox?", GenerationOptions(max_new_tokens=6))
    assert result["token_ids"] == list(expected.token_ids)
    assert result["backend"] == "tensorrt"
    data = tmp_path / "questions.jsonl"
    line = {"image": "picture.png", "question": "where is the fox?", "answer": expected.text}
    data.write_text(json.dumps(line) + "\n")
    options = ("--data", data, "--images", tmp_path, "--max-new-tokens", 6)
    report = json.loads(invoke("eval", engine_run, *options, *words).stdout)
    assert report["compressed"]["accuracy"] == 1
    assert report["backend"] == "tensorrt"
    assert (engine_run / "reports" / "eval-tensorrt-float32.json").is_file()


def test_missing_engines_name_the_build(run, picture, tmp_path):
    path = tmp_path / "picture.png"
    picture.save(path)
    for words in ((), ("--precision", "bfloat16")):
        options = ("--image", path, "--prompt", "?", "--backend", "tensorrt", *words)
        with pytest.raises(CompExportError, match="comp-export tensorrt"):
            invoke("run", run, *options)


@pytest.mark.gpu
@pytest.mark.skipif(gpu_capability() is None, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_answers_on_a_gpu_equal_onnxruntime(checkpoint, plan, tmp_path, compressed, precision):
    """Real engines, of the installed TensorRT, give the same answers."""
    source, out = tmp_path / "onnx-standard", tmp_path / "tensorrt"
    export_artifact(
        checkpoint.path, source, Origin.of_plan(plan), Target("standard", precision), plan
    )
    options = BuildOptions((gpu_capability(),))
    build_engines(find_tensorrt(), source, out, LIMITS, options)
    engine = Engine.load(out)
    for images, prompt in QUESTIONS:
        result = engine.generate(images, prompt, OPTIONS)
        expected = compressed.generate(images, prompt, OPTIONS)
        if precision == "float32":
            assert result.token_ids == expected.token_ids
        assert {m: p.size for m, p in result.kept.by_layer.items()} == {
            m: p.size for m, p in expected.kept.by_layer.items()
        }
