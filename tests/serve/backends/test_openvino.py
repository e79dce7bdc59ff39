"""OpenVINO in place of ONNX Runtime: the same answers, and refusals of what it does not run."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from click.testing import CliRunner

from comp.cli import cli
from comp.errors import CompExportError
from export.artifact.llava_manifest import LlavaArtifact
from export.exporter import Origin, export_artifact
from export.graph.builder import Target
from export.openvino.embedding_table import OpenVinoTable
from export.openvino.graph import OpenVinoGraph, computes_bfloat16
from serve.backends.llava_graphs import GraphBackend
from serve.backends.open import open_artifact
from serve.engines.llava import Engine
from serve.generation.options import GenerationOptions
from serve.generation.results import TokenText
from serve.loading import load_engine
from tests.comp import small_blip, small_clip
from tests.serve.random_llava import noise

pytest.importorskip("openvino", reason="runs in OpenVINO: pip install -e '.[openvino]'")

OPTIONS = GenerationOptions(max_new_tokens=8, ignore_eos=True)
QUESTIONS = [
    ([noise(1)], "where is the fox?"),
    ([], "hello you"),
    ([noise(1), noise(2)], "more than one?"),
    ([noise(3)], "count the animals on the left."),
]


@pytest.fixture(scope="module")
def standard(checkpoint, plan, tmp_path_factory):
    """A directory with a compressed and a dense artifact of the standard flavour."""
    home = tmp_path_factory.mktemp("openvino")
    target = Target("standard", "float32")
    export_artifact(checkpoint.path, home / "onnx-standard", Origin.of_plan(plan), target, plan)
    export_artifact(checkpoint.path, home / "onnx-dense-standard", Origin("tiny"), target)
    return home


@pytest.fixture(scope="module")
def engines(standard):
    names = {"dense": "onnx-dense-standard", "compressed": "onnx-standard"}
    return {
        which: Engine.load(standard / name, threads=1, backend="openvino")
        for which, name in names.items()
    }


@pytest.mark.parametrize("which", ["dense", "compressed"])
@pytest.mark.parametrize(("images", "prompt"), QUESTIONS)
def test_answers_equal_those_of_onnxruntime(engines, which, images, prompt, request):
    peer = request.getfixturevalue(which)
    result = engines[which].generate(images, prompt, OPTIONS)
    expected = peer.generate(images, prompt, OPTIONS)
    assert result.token_ids == expected.token_ids
    assert len(set(expected.token_ids)) > 2
    assert result.kept.by_layer.keys() == expected.kept.by_layer.keys()
    for layer, places in expected.kept.by_layer.items():
        assert np.array_equal(result.kept.by_layer[layer], places)


def test_it_reports_its_backend(engines):
    engine = engines["dense"]
    assert (engine.backend, engine.device) == ("openvino", "cpu")
    assert engine.provider.startswith("openvino 20")
    assert engine.threads == 1


@pytest.mark.parametrize("which", ["onnx-dense-standard", "onnx-standard"])
def test_logits_are_float32(standard, which):
    """Check a prefill and later steps; bfloat16, OpenVINO's own choice, would be a percent off."""
    backends = [
        GraphBackend(*open_artifact(standard / which, LlavaArtifact, threads=1, backend=backend))
        for backend in ("openvino", "onnxruntime")
    ]
    random = np.random.default_rng(4)
    vision = backends[0].manifest.vision
    pixels = random.standard_normal((2, 3, vision.image_size, vision.image_size)).astype(np.float32)
    length = vision.image_tokens + 7
    ids = random.integers(10, 300, (2, length))
    places = np.tile(np.arange(length), (2, 1))
    split = (places[:, 2 : 2 + vision.image_tokens], np.delete(places, np.s_[2:-5], axis=1))
    prefills = [backend.prefill(pixels, ids, *split, 1.0) for backend in backends]
    logits, states = zip(*((result.logits, result.state) for result in prefills), strict=True)
    for tokens in ([11, 12], [13, 14], [15, 16]):
        np.testing.assert_allclose(logits[0], logits[1], atol=1e-4)
        assert np.abs(logits[1]).max() > 0.1
        steps = [
            backend.step(tokens, state) for backend, state in zip(backends, states, strict=True)
        ]
        logits, states = zip(*steps, strict=True)
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-4)


def test_outputs_are_not_overwritten_by_the_next_run(standard):
    """A request is reused by the next run, which must not overwrite the outputs of the one before."""
    graph = OpenVinoGraph(standard / "onnx-standard" / "embed_tokens.onnx", threads=1)
    first, second = np.array([[1, 2, 3]]), np.array([[4, 5]])
    (array,), _ = graph.run({"input_ids": first}, ["inputs_embeds"])
    _, (tensor,) = graph.run({"input_ids": first}, kept=["inputs_embeds"])
    before = array.copy()
    (other,), _ = graph.run({"input_ids": second}, ["inputs_embeds"])
    assert other.shape[:2] == (1, 2)
    assert not np.array_equal(other[0, 0], before[0, 0])
    assert np.array_equal(array, before)
    assert np.array_equal(tensor.data, before)


def test_arrays_of_any_memory_layout_are_accepted(standard):
    graph = OpenVinoGraph(standard / "onnx-standard" / "embed_tokens.onnx", threads=1)
    ids = np.array([[1, 2, 3, 4]])
    (expected,), _ = graph.run({"input_ids": ids}, ["inputs_embeds"])
    strided = np.repeat(ids, 2, axis=1)[:, ::2]
    borrowed = np.broadcast_to(ids[0], (1, 4))
    assert not borrowed.flags.writeable
    for same in (strided, np.asfortranarray(ids), borrowed):
        (result,), _ = graph.run({"input_ids": same}, ["inputs_embeds"])
        assert np.array_equal(result, expected)


def test_batches_equal_single_answers(engines, compressed):
    requests = [([noise(n)], f"where is {word}?") for n, word in enumerate(["it", "he", "a"])]
    requests += [([], "hello you"), ([], "hello me"), ([noise(7)], "how many are there?")]
    result = engines["compressed"].generate_batch(requests, OPTIONS, batch_size=3)
    expected = compressed.generate_batch(requests, OPTIONS, batch_size=3)
    assert [a.token_ids for a in result] == [a.token_ids for a in expected]


def test_concurrent_requests_are_independent(engines, compressed):
    """Interleave answers token by token, and in threads: each equals the single answer."""
    engine = engines["compressed"]
    expected = [compressed.generate(*question, OPTIONS).token_ids for question in QUESTIONS]
    streams = [engine.stream(*question, OPTIONS) for question in QUESTIONS]
    tokens = [[] for _ in streams]
    alive = dict(enumerate(streams))
    while alive:
        for number, stream in list(alive.items()):
            event = next(stream, None)
            if event is None:
                del alive[number]
            elif isinstance(event, TokenText):
                tokens[number].append(event.token_id)
    assert [tuple(result) for result in tokens] == expected
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda question: engine.generate(*question, OPTIONS), QUESTIONS))
    assert [answer.token_ids for answer in answers] == expected


def random_encoder(kind):
    """A model and a plan that cuts heads, channels and tokens of it."""
    if kind == "clip":
        return small_clip.random_clip(2, width=32), small_clip.random_plan(2)
    adapter = small_blip.random_blip(kind, seed=2, width=32)
    return adapter, small_blip.random_plan(adapter, seed=2)


def worked(engine, kind):
    """Return the outputs of an engine for pictures and texts, as numbers."""
    texts = ("a fox", "a ram and a wheel at the top")
    if kind in ("clip", "retrieval"):
        return engine.rank([noise(1), noise(2)], texts).of_texts
    if kind == "statement":
        return engine.judge([noise(1), noise(2)], texts[1]).probability
    # Drawn from flat logits: the likeliest token of a random model is always the same.
    options = GenerationOptions(max_new_tokens=8, ignore_eos=True, temperature=20, seed=1)
    return engine.generate([noise(1)], texts[0], options).token_ids


@pytest.mark.parametrize("kind", ["clip", *small_blip.TASKS])
def test_clip_and_blip_equal_onnxruntime(kind, tmp_path):
    model, plan = random_encoder(kind)
    model.save(tmp_path / "dense")
    out = tmp_path / "onnx-standard"
    target = Target("standard", "float32")
    export_artifact(tmp_path / "dense", out, Origin.of_plan(plan), target, plan)
    result, expected = (
        worked(load_engine(out, threads=1, backend=backend), kind)
        for backend in ("openvino", "onnxruntime")
    )
    np.testing.assert_allclose(result, expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["question", "statement", "retrieval"])
def test_blip_in_bfloat16(kind, tmp_path):
    """Values between its graphs are bfloat16, which NumPy does not have."""
    if not computes_bfloat16():
        pytest.skip("this CPU does not compute bfloat16")
    random_encoder(kind)[0].save(tmp_path / "dense")
    results = []
    for precision, backend in (("bfloat16", "openvino"), ("float32", "onnxruntime")):
        out = tmp_path / precision
        export_artifact(tmp_path / "dense", out, Origin("t"), Target("standard", precision))
        results.append(worked(load_engine(out, threads=1, backend=backend), kind))
    np.testing.assert_allclose(*results, atol=0.05)


@pytest.fixture(scope="module", params=["float16", "bfloat16"])
def half(request, checkpoint, tmp_path_factory):
    """A dense artifact in half precision."""
    if request.param == "bfloat16" and not computes_bfloat16():
        pytest.skip("this CPU does not compute bfloat16")
    out = tmp_path_factory.mktemp("half") / request.param
    export_artifact(checkpoint.path, out, Origin("t"), Target("standard", request.param))
    return out


def test_half_precision_logits_are_close(half, dense):
    """Logits of a prefill and of steps with caches in half precision."""
    backend = GraphBackend(*open_artifact(half, LlavaArtifact, threads=1, backend="openvino"))
    peer = dense._backend
    ids = np.random.default_rng(4).integers(10, 300, (2, 9))
    split = (np.zeros((2, 0), np.int64), np.tile(np.arange(9), (2, 1)))
    result, expected = (each.prefill(None, ids, *split, 1.0) for each in (backend, peer))
    pairs, states = [(result.logits, expected.logits)], (result.state, expected.state)
    for tokens in ([11, 12], [13, 14]):
        steps = [
            each.step(tokens, state) for each, state in zip((backend, peer), states, strict=True)
        ]
        (pair, states) = zip(*steps, strict=True)
        pairs.append(pair)
    for mine, theirs in pairs:
        difference = np.abs(mine - theirs).max() / np.abs(theirs).max()
        least, most = (1e-6, 3e-3) if half.name == "float16" else (1e-4, 0.1)
        assert least < difference < most


def test_half_precision_gives_answers(half):
    engine = Engine.load(half, threads=1, backend="openvino")
    answer = engine.generate([noise(1), noise(2)], "where?", OPTIONS)
    assert len(answer.token_ids) == OPTIONS.max_new_tokens


def test_bfloat16_is_refused_by_a_cpu_without_it(standard, monkeypatch):
    monkeypatch.setattr("export.openvino.graph.computes_bfloat16", lambda: False)
    with pytest.raises(CompExportError, match=r"this CPU does not compute.*--precision float32"):
        OpenVinoGraph(standard / "onnx-standard" / "embed_tokens.onnx", "bfloat16")


@pytest.fixture(scope="module", params=["int8", "int4"])
def integers(request, checkpoint, plan, tmp_path_factory):
    """A compressed artifact of integer weights."""
    out = tmp_path_factory.mktemp("integers") / request.param
    export_artifact(
        checkpoint.path, out, Origin.of_plan(plan), Target("standard", request.param), plan
    )
    return out


def test_integers_computed_in_bfloat16(integers):
    """Logits are close to float32, and not the same; caches are bfloat16."""
    if not computes_bfloat16():
        pytest.skip("this CPU does not compute bfloat16")
    ids = np.random.default_rng(4).integers(10, 300, (2, 40))
    split = (np.zeros((2, 0), np.int64), np.tile(np.arange(40), (2, 1)))
    result = []
    for name in ("openvino-bfloat16", "openvino"):
        backend = GraphBackend(*open_artifact(integers, LlavaArtifact, threads=1, backend=name))
        assert backend.name == name
        read = backend.prefill(None, ids, *split, 1.0)
        logits, _ = backend.step([11, 12], read.state)
        result.append(
            (read.logits, logits, read.state.caches[0].tensor.element_type.get_type_name())
        )
    (*mine, kind), (*theirs, other) = result
    assert (kind, other) == ("bf16", "f32")
    for rough, exact in zip(mine, theirs, strict=True):
        assert 1e-4 < np.abs(rough - exact).max() / np.abs(exact).max() < 0.1


def test_computing_in_bfloat16_is_for_integers(standard, integers, monkeypatch):
    with pytest.raises(CompExportError, match=r"is float32: export with --precision bfloat16"):
        Engine.load(standard / "onnx-standard", backend="openvino-bfloat16")
    monkeypatch.setattr("export.openvino.graph.computes_bfloat16", lambda: False)
    with pytest.raises(CompExportError, match=r"does not compute.*--backend openvino"):
        Engine.load(integers, backend="openvino-bfloat16")


def test_unsupported_artifacts_are_refused(standard, compressed_artifact):
    with pytest.raises(CompExportError, match=r"onnxruntime flavour.*--flavour standard"):
        Engine.load(compressed_artifact, backend="openvino")
    for options in ({"device": "cuda"}, {"provider": "cpu"}):
        with pytest.raises(CompExportError, match="for ONNX Runtime: leave one out"):
            Engine.load(standard / "onnx-standard", backend="openvino", **options)
    with pytest.raises(CompExportError, match="comp-export tensorrt"):
        Engine.load(standard / "onnx-standard", backend="tensorrt")
    engine = Engine.load(standard / "onnx-standard", threads=1, backend="openvino")
    with pytest.raises(CompExportError, match="keep_factor"):
        engine.stream([noise(0)], "where?", GenerationOptions(keep_factor=0.5))


def test_an_unreadable_graph_is_named(tmp_path):
    (tmp_path / "decoder_model.onnx").write_bytes(b"no graph")
    with pytest.raises(CompExportError, match=r"OpenVINO cannot load .*decoder_model\.onnx"):
        OpenVinoGraph(tmp_path / "decoder_model.onnx")


def test_rows_of_a_table_are_those_of_its_graph(half, standard):
    """Rows are float32 for every storage type, also those of a single token."""
    ids = np.random.default_rng(0).integers(0, 300, (2, 5))
    (result,), _ = OpenVinoTable(half / "embed_tokens.onnx").run(
        {"input_ids": ids}, ["inputs_embeds"]
    )
    graph = OpenVinoGraph(half / "embed_tokens.onnx")
    (expected,), _ = graph.run({"input_ids": ids}, ["inputs_embeds"])
    assert result.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(result, expected)
    _, (one,) = OpenVinoTable(half / "embed_tokens.onnx").run(
        {"input_ids": ids[:1, :1]}, kept=["inputs_embeds"]
    )
    np.testing.assert_array_equal(one, expected[:1, :1])
    with pytest.raises(CompExportError, match=r"vision_encoder\.onnx is not an embedding look-up"):
        OpenVinoTable(standard / "onnx-standard" / "vision_encoder.onnx")


def test_without_openvino_the_remedy_is_given(standard, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(CompExportError, match=r"pip install -e '.*\[openvino\]'"):
        Engine.load(standard / "onnx-standard", backend="openvino")


def test_it_needs_no_onnxruntime(standard):
    """The process has neither ONNX Runtime nor torch nor transformers."""
    code = (
        "import sys\n"
        "sys.modules |= dict.fromkeys(('onnxruntime', 'torch', 'transformers'))\n"
        "import numpy as np\n"
        "from PIL import Image\n"
        "from serve.engines.llava import Engine\n"
        f"engine = Engine.load({str(standard / 'onnx-standard')!r}, threads=1, backend='openvino')\n"
        "picture = Image.new('RGB', (64, 64), 'red')\n"
        "print(len(engine.generate([picture], 'where is the fox?').token_ids))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


def invoke(*arguments):
    return CliRunner().invoke(cli, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture
def picture_path(picture, tmp_path):
    path = tmp_path / "picture.png"
    picture.save(path)
    return path


def test_the_commands_run_it(run, standard, compressed, picture_path, tmp_path):
    for source in standard.iterdir():
        shutil.copytree(source, run / source.name)
    words = ("--backend", "openvino", "--json")
    common = ("--image", picture_path, "--prompt", "where is the fox?")
    result = json.loads(invoke("run", run, *common, "--max-new-tokens", 6, *words).stdout)
    options = GenerationOptions(max_new_tokens=6)
    expected = compressed.generate([picture_path], "where is the fox?", options)
    assert result["token_ids"] == list(expected.token_ids)
    assert result["backend"] == "openvino"
    data = tmp_path / "questions.jsonl"
    line = {"image": "picture.png", "question": "where is the fox?", "answer": expected.text}
    data.write_text(json.dumps(line) + "\n")
    options = ("--data", data, "--images", tmp_path, "--max-new-tokens", 6)
    report = json.loads(invoke("eval", run, *options, *words).stdout)
    assert report["compressed"]["accuracy"] == 1
    assert report["backend"] == "openvino"
    assert "openvino" in report["versions"]
    assert (run / "reports" / "eval-openvino-standard.json").is_file()


@pytest.mark.slow
def test_bench_measures_it_with_onnxruntime(run, standard, picture_path):
    for source in standard.iterdir():
        shutil.copytree(source, run / source.name)
    common = ("--image", picture_path, "--prompt", "where is the fox?", "--against", "openvino")
    few = ("--new-tokens", 2, "--warmup", 0, "--repeats", 1, "--cold-starts", 1, "--threads", 1)
    report = json.loads(invoke("bench", run, *common, *few, "--json").stdout)
    assert report["backend"] == "onnxruntime"
    (other,) = report["against"]
    assert other["backend"] == "openvino"
    assert other["name"] == "openvino float32"


def test_a_missing_artifact_names_the_export(run, picture_path):
    options = ("--image", picture_path, "--prompt", "?", "--backend", "openvino")
    with pytest.raises(CompExportError, match=r"comp-export onnx .* --flavour standard"):
        invoke("run", run, *options)
