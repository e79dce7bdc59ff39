"""BLIP's graphs against torch: dense, cut, and with tokens dropped in every block of both encoders."""

import json

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx.external_data_helper import uses_external_data
from transformers import BlipConfig

from comp.errors import CompExportError
from export.artifact.encoder_manifest import GRAPHS
from export.configs.blip import blip_of
from export.families.blip.graphs import build_blip_graphs
from export.graph.builder import Target
from export.weights.checkpoint import CheckpointWeights
from export.weights.slim import SlimWeights
from tests.export.shapes import read_blip
from tests.export.small_blip import (
    BOS,
    LAYERS,
    POSITIONS,
    TASKS,
    VOCAB,
    Graphs,
    Reference,
    cuts_of,
    places,
    random_blip,
    random_plan,
    save_blip,
)

FLAVOURS = ("onnxruntime", "standard")
ONNX = Target()
CLOSE = 1e-4  # of the largest number, in float32
HALF = 3e-2
RATIOS = [None, 1.0, 0.6, 0.2]


@pytest.fixture(scope="module")
def models():
    return {task: random_blip(task, seed) for seed, task in enumerate(TASKS)}


@pytest.fixture
def graphs_of(models, tmp_path):
    """Graphs of a model that a plan has cut, and the dense model with its masks in torch."""
    made = iter(range(1000))

    def make(task, plan=None, target=ONNX):
        folder = tmp_path / str(next(made))
        folder.mkdir()
        checkpoint = save_blip(task, models[task], folder / "model", plan)
        return Graphs(checkpoint, folder / "onnx", target), Reference(task, models[task], plan)

    return make


def inputs(seed, count, length, images=1):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(count * images, 3, 56, 56, generator=generator)
    return pixels, torch.randint(3, VOCAB, (count, length), generator=generator)


def same(result, expected, bound=CLOSE):
    expected = expected.numpy()
    assert result.shape == expected.shape
    assert result.dtype == np.float32
    assert np.abs(result - expected).max() <= bound * max(1.0, np.abs(expected).max())


def same_places(result, encoded, but=None):
    """``but``: the block whose drop has no effect, because only the first token is read after it."""
    expected = {layer: place for layer, place in places(encoded).items() if layer != but}
    assert sorted(result) == sorted(expected)
    for layer, place in expected.items():
        assert np.array_equal(result[layer], place)


def plan_of(task, ratio, seed=0):
    return None if ratio is None else random_plan(task, seed, ratio, ratio)


def normalised(x):
    return torch.nn.functional.normalize(x, dim=-1)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("ratio", RATIOS)
def test_image_graph_equals_torch(graphs_of, flavour, task, ratio):
    graphs, torch_ = graphs_of(task, plan_of(task, ratio), Target(flavour))
    for seed, count in enumerate((3, 1)):
        pixels, _ = inputs(seed, count, 3)
        result, kept = graphs.see(pixels)
        seen = torch_.see(pixels)
        same(result["last_hidden_state"], seen.states)
        same_places(kept, seen.encoded)
        assert set(result) == {"last_hidden_state"} | (
            {"image_embeds"} if task == "retrieval" else set()
        )
        if task == "retrieval":
            with torch.no_grad():
                same(
                    result["image_embeds"], normalised(torch_.model.vision_proj(seen.states[:, 0]))
                )


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("ratio", RATIOS)
def test_question_graphs_equal_torch(graphs_of, flavour, ratio):
    graphs, torch_ = graphs_of("question", plan_of("question", ratio), Target(flavour))
    for seed, (count, length) in enumerate(((3, 7), (1, 1), (2, POSITIONS))):
        pixels, ids = inputs(seed, count, length)
        states = torch_.see(pixels).states
        result, kept = graphs.run("text_encoder", input_ids=ids, encoder_hidden_states=states)
        question_states = torch_.read(ids, states)
        same(result["last_hidden_state"], question_states.tokens.states)
        same_places(kept, question_states)
        whole = graphs.run(
            "text_encoder",
            input_ids=ids,
            encoder_hidden_states=graphs.see(pixels)[0]["last_hidden_state"],
        )
        same(whole[0]["last_hidden_state"], question_states.tokens.states)
        check_steps(graphs, torch_, question_states.tokens.states, seed)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("ratio", RATIOS)
def test_caption_graphs_equal_torch(graphs_of, flavour, ratio):
    graphs, torch_ = graphs_of("caption", plan_of("caption", ratio), Target(flavour))
    for seed, count in enumerate((3, 1)):
        check_steps(graphs, torch_, torch_.see(inputs(seed, count, 3)[0]).states, seed)


def check_steps(graphs, torch_, states, seed):
    """A prompt and then token by token, against all tokens at once without a cache."""
    ids = torch.randint(
        3, VOCAB, (len(states), 8), generator=torch.Generator().manual_seed(90 + seed)
    )
    expected = torch_.logits(ids, states)
    for prompt in (1, 4, 8):
        generation = graphs.answerer(states)
        same(generation.step(ids[:, :prompt]), expected[:, prompt - 1])
        for place in range(prompt, 8):
            same(generation.step(ids[:, place : place + 1]), expected[:, place])


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("ratio", RATIOS)
@torch.no_grad()
def test_retrieval_graphs_equal_torch(graphs_of, flavour, ratio):
    graphs, torch_ = graphs_of("retrieval", plan_of("retrieval", ratio), Target(flavour))
    for seed, (count, length) in enumerate(((3, 7), (1, 1), (2, POSITIONS))):
        pixels, ids = inputs(seed, count, length)
        result, kept = graphs.run("text_model", input_ids=ids)
        alone = torch_.read(ids)
        same(result["text_embeds"], normalised(torch_.model.text_proj(alone.tokens.states[:, 0])))
        same_places(kept, alone, but=LAYERS)
        states = torch_.see(pixels).states
        result, kept = graphs.run("itm_model", input_ids=ids, encoder_hidden_states=states)
        both = torch_.read(ids, states)
        same(result["logits"], torch_.model.itm_head(both.tokens.states[:, 0]))
        same_places(kept, both, but=LAYERS)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("ratio", RATIOS)
@torch.no_grad()
def test_statement_graphs_equal_torch(graphs_of, flavour, ratio):
    graphs, torch_ = graphs_of("statement", plan_of("statement", ratio), Target(flavour))
    for seed, (count, length) in enumerate(((3, 7), (1, 1), (2, POSITIONS))):
        check_statements(graphs, torch_, seed, count, length)


def check_statements(graphs, torch_, seed, count, length):
    pixels, ids = inputs(seed, count, length, images=2)
    images = torch_.see(pixels).states.unflatten(0, (count, 2))
    result, kept = graphs.run(
        "text_encoder",
        input_ids=ids,
        encoder_hidden_states__0=images[:, 0],
        encoder_hidden_states__1=images[:, 1],
    )
    judged = torch_.read(ids, images[:, 0], images[:, 1])
    same(result["logits"], torch_.model.cls_head(judged.tokens.states[:, 0]))
    same_places(kept, judged, but=LAYERS)


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 999),
    ratio=st.integers(1, 1000).map(lambda n: n / 1000),
    length=st.integers(1, POSITIONS),
    flavour=st.sampled_from(FLAVOURS),
)
@torch.no_grad()
def test_graphs_equal_torch_for_any_heads_ratio_and_length(graphs_of, seed, ratio, length, flavour):
    graphs, torch_ = graphs_of("statement", plan_of("statement", ratio, seed), Target(flavour))
    check_statements(graphs, torch_, seed, 2, length)


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 999),
    ratio=st.integers(1, 1000).map(lambda n: n / 1000),
    flavour=st.sampled_from(FLAVOURS),
)
def test_decoder_graph_equals_torch_for_any_heads(graphs_of, seed, ratio, flavour):
    graphs, torch_ = graphs_of("caption", plan_of("caption", ratio, seed), Target(flavour))
    check_steps(graphs, torch_, torch_.see(inputs(seed, 2, 1)[0]).states, seed)


@pytest.mark.parametrize("flavour", FLAVOURS)
@torch.no_grad()
def test_dense_graphs_generate_as_transformers(models, graphs_of, flavour):
    pixels, ids = inputs(4, 3, 6)
    graphs, _ = graphs_of("question", target=Target(flavour))
    question_states, _ = graphs.run(
        "text_encoder",
        input_ids=ids,
        encoder_hidden_states=graphs.see(pixels)[0]["last_hidden_state"],
    )
    options = {"max_new_tokens": 8, "num_beams": 1, "do_sample": False}
    expected = models["question"].generate(input_ids=ids, pixel_values=pixels, **options).numpy()
    start = np.full((3, 1), graphs.shape.bos)
    assert start[0, 0] == BOS
    result = graphs.answerer(question_states["last_hidden_state"]).greedy(start, 8)
    assert np.array_equal(result, expected)
    assert len({tuple(row) for row in result.tolist()}) > 1

    graphs, _ = graphs_of("caption", target=Target(flavour))
    states = graphs.see(pixels)[0]["last_hidden_state"]
    expected = models["caption"].generate(pixel_values=pixels, **options).numpy()
    assert np.array_equal(graphs.answerer(states).greedy(start, 8), expected)
    prompt = torch.tensor([[BOS, 7, 9]] * 3)
    # transformers leaves the last token, a separator, of a prompt out
    ended = torch.cat([prompt, torch.full((3, 1), 2)], dim=1)
    expected = models["caption"].generate(pixel_values=pixels, input_ids=ended, **options).numpy()
    assert np.array_equal(graphs.answerer(states).greedy(prompt, 8), expected)


@pytest.mark.parametrize("flavour", FLAVOURS)
@torch.no_grad()
def test_dense_graphs_match_as_transformers(models, graphs_of, flavour):
    pixels, ids = inputs(5, 3, 6)
    graphs, _ = graphs_of("retrieval", target=Target(flavour))
    seen = graphs.see(pixels)[0]
    matched, _ = graphs.run(
        "itm_model", input_ids=ids, encoder_hidden_states=seen["last_hidden_state"]
    )
    model = models["retrieval"]
    same(matched["logits"], model(input_ids=ids, pixel_values=pixels).itm_score)
    texts = graphs.run("text_model", input_ids=ids)[0]["text_embeds"]
    scores = model(input_ids=ids, pixel_values=pixels, use_itm_head=False).itm_score
    same(seen["image_embeds"] @ texts.T, scores)

    pixels, ids = inputs(6, 3, 6, images=2)
    graphs, _ = graphs_of("statement", target=Target(flavour))
    states = graphs.see(pixels)[0]["last_hidden_state"].reshape(3, 2, -1, 48)
    result, _ = graphs.run(
        "text_encoder",
        input_ids=ids,
        encoder_hidden_states__0=states[:, 0],
        encoder_hidden_states__1=states[:, 1],
    )
    pairs = pixels.unflatten(0, (3, 2))
    same(result["logits"], models["statement"](input_ids=ids, pixel_values=pairs).logits)


@pytest.mark.parametrize("flavour", FLAVOURS)
@torch.no_grad()
def test_half_precision_graphs_are_close_to_torch(graphs_of, flavour):
    """No tokens are dropped: close scores may change places in half precision."""
    target = Target(flavour, "float16")
    pixels, ids = inputs(7, 3, 6)
    for task in ("question", "caption", "retrieval", "statement"):
        graphs, torch_ = graphs_of(task, random_plan(task, 3, 1.0, 1.0), target)
        seen = torch_.see(pixels)
        result, kept = graphs.see(pixels)
        same(result["last_hidden_state"], seen.states, HALF)
        same_places(kept, seen.encoded)
        states = seen.states
        if task == "question":
            result, _ = graphs.run("text_encoder", input_ids=ids, encoder_hidden_states=states)
            states = torch_.read(ids, states).tokens.states
            same(result["last_hidden_state"], states, HALF)
        if task in ("question", "caption"):
            generation = graphs.answerer(states)
            expected = torch_.logits(ids, states)
            same(generation.step(ids[:, :4]), expected[:, 3], HALF)
            same(generation.step(ids[:, 4:5]), expected[:, 4], HALF)
            assert {each.dtype for each in generation.past.values()} == {np.dtype(np.float16)}
        if task == "retrieval":
            result, _ = graphs.run("itm_model", input_ids=ids, encoder_hidden_states=states)
            judged = torch_.model.itm_head(torch_.read(ids, states).tokens.states[:, 0])
            same(result["logits"], judged, HALF)
            embeds = graphs.run("text_model", input_ids=ids)[0]["text_embeds"]
            alone = torch_.model.text_proj(torch_.read(ids).tokens.states[:, 0])
            same(embeds, normalised(alone), HALF)
        if task == "statement":
            result, _ = graphs.run(
                "text_encoder",
                input_ids=ids,
                encoder_hidden_states__0=states,
                encoder_hidden_states__1=states,
            )
            judged = torch_.read(ids, states, states).tokens.states[:, 0]
            same(result["logits"], torch_.model.cls_head(judged), HALF)


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("task", TASKS)
def test_the_standard_flavour_is_standard(models, tmp_path, task, precision):
    checkpoint = save_blip(task, models[task], tmp_path / "model", random_plan(task, 1))
    shape = read_blip(checkpoint)
    (tmp_path / "onnx").mkdir()
    target = Target("standard", precision)
    weights = CheckpointWeights(checkpoint, naming=str)
    build_blip_graphs(shape, weights, target, tmp_path / "onnx")
    for name in GRAPHS["blip", shape.task]:
        path = tmp_path / "onnx" / name
        onnx.checker.check_model(str(path), full_check=True)
        loaded = onnx.load(path, load_external_data=False)
        assert {node.domain for node in loaded.graph.node} == {""}


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_text_weights_of_retrieval_are_stored_once(graphs_of, flavour):
    graphs, _ = graphs_of("retrieval", target=Target(flavour))

    def locations(name):
        tensors = onnx.load(graphs.directory / name, load_external_data=False).graph.initializer
        return {
            tensor.name: {entry.key: entry.value for entry in tensor.external_data}
            for tensor in tensors
            if uses_external_data(tensor)
        }

    alone, both = locations("text_model.onnx"), locations("itm_model.onnx")
    assert {each["location"] for each in both.values()} == {"itm_model.onnx.data"}
    own = {name for name in alone if name not in both}
    assert own == {"text_proj.weight"}
    assert alone["text_proj.weight"]["location"] == "text_model.onnx.data"
    assert {name: alone[name] for name in alone if name in both} == {
        name: both[name] for name in both if "cross" not in name
    }


def test_a_decoders_word_embedding_is_stored_once(graphs_of):
    graphs, _ = graphs_of("caption")
    tensors = onnx.load(
        graphs.directory / "decoder_model.onnx", load_external_data=False
    ).graph.initializer
    assert [t.name for t in tensors if VOCAB in t.dims and len(t.dims) == 2] == [
        "text_decoder.bert.embeddings.word_embeddings.weight"
    ]


@pytest.mark.parametrize("task", TASKS)
def test_graph_names_match_the_manifest(graphs_of, task):
    graphs, _ = graphs_of(task)
    assert tuple(graphs.names) == GRAPHS["blip", graphs.shape.task]
    files = {path.name for path in graphs.directory.iterdir()}
    assert files == {f"{name}{end}" for name in graphs.names for end in ("", ".data")}


@pytest.mark.parametrize("task", TASKS)
def test_shapes_from_a_plan_equal_those_of_its_checkpoint(models, tmp_path, task):
    plan = random_plan(task, 2)
    dense = read_blip(save_blip(task, models[task], tmp_path / "dense"))
    slim = save_blip(task, models[task], tmp_path / "slim", plan)
    assert dense.pruned(plan) == read_blip(slim)
    assert dense.task == read_blip(slim).task == task
    with pytest.raises(CompExportError, match="compressed already"):
        read_blip(slim).pruned(plan)
    with pytest.raises(CompExportError, match="a plan of a clip, and the model is a blip"):
        dense.pruned(plan.model_copy(update={"family": "clip"}))
    few = plan.model_copy(update={"blocks": plan.blocks[1:], "drops": ()})
    assert dense.pruned(few).sizes.vision.blocks[0] == dense.sizes.vision.blocks[0]
    with pytest.raises(CompExportError, match=r"vision block 1 of .*which the model has not"):
        dense.pruned(few).pruned(plan.model_copy(update={"blocks": plan.blocks[1:]}))


@pytest.mark.parametrize("task", TASKS)
def test_a_dense_checkpoint_with_a_plan_exports_as_the_cut_one(models, tmp_path, task):
    """The graphs of both are identical, so no slim checkpoint has to be written."""
    plan = random_plan(task, 4)
    dense = save_blip(task, models[task], tmp_path / "dense")
    slim = save_blip(task, models[task], tmp_path / "slim", plan)
    cut = SlimWeights(CheckpointWeights(dense, naming=str), cuts_of(task, plan).of)
    made = {
        "cut": (read_blip(dense).pruned(plan), cut),
        "slim": (read_blip(slim), CheckpointWeights(slim, naming=str)),
    }
    for name, (shape, weights) in made.items():
        (tmp_path / name / "onnx").mkdir(parents=True)
        build_blip_graphs(shape, weights, ONNX, tmp_path / name / "onnx")
    for path in sorted((tmp_path / "slim" / "onnx").iterdir()):
        assert (tmp_path / "cut" / "onnx" / path.name).read_bytes() == path.read_bytes()


def test_unsupported_configurations_are_refused(models, tmp_path):
    plan = random_plan("caption", 2)
    directory = save_blip("caption", models["caption"], tmp_path / "slim", plan)
    config = json.loads((directory / "config.json").read_text())
    with pytest.raises(CompExportError, match="model_type is 'siglip'"):
        blip_of(config | {"model_type": "siglip"}, "config.json")
    text = config["text_config"]
    with pytest.raises(CompExportError, match=r"text_config\.hidden_act is 'mish'"):
        blip_of(config | {"text_config": text | {"hidden_act": "mish"}}, "config.json")
    with pytest.raises(CompExportError, match="records 3 blocks of a part that has 5"):
        blip_of(config | {"text_config": text | {"num_hidden_layers": 5}}, "config.json")
    with pytest.raises(CompExportError, match=r"text_config\.sep_token_id is None"):
        blip_of(config | {"text_config": text | {"sep_token_id": None}}, "config.json")
    cross = {"num_attention_heads": [1, 2]}
    with pytest.raises(CompExportError, match="2 entries for 3 blocks of 1 cross-attentions"):
        blip_of(config | {"pruning": config["pruning"] | {"cross": cross}}, "config.json")
    drop = {"part": "language", "after_layer": 1, "vision_keep_ratio": 1.0, "text_keep_ratio": 0.5}
    with pytest.raises(CompExportError, match="after block 1 of language, which has 0"):
        blip_of(config | {"pruning": config["pruning"] | {"drops": [drop]}}, "config.json")


def test_missing_settings_have_the_defaults_of_transformers(models):
    shape = blip_of({"model_type": "blip", "architectures": ["BlipForQuestionAnswering"]}, "folder")
    whole = BlipConfig()
    assert shape.sizes.vision.image_size == whole.vision_config.image_size
    assert shape.sizes.vision.patch_size == whole.vision_config.patch_size
    assert shape.vision.layer_norm_eps == whole.vision_config.layer_norm_eps
    assert shape.text.layer_norm_eps == whole.text_config.layer_norm_eps
    assert {shape.vision.act, shape.text.act} == {
        whole.vision_config.hidden_act, whole.text_config.hidden_act,
    }  # fmt: skip
    text = whole.text_config
    assert (shape.bos, shape.sep) == (text.bos_token_id, text.sep_token_id)
