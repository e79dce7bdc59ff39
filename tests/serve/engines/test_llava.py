"""The engine against transformers' own generate, and by itself."""

import numpy as np
import onnxruntime
import pytest
import torch

from comp.errors import CompExportError
from comp.plan import keep_count
from export.artifact.llava_manifest import LlavaArtifact
from export.exporter import Origin, export_artifact
from export.graph.builder import Target
from serve.backends.llava_graphs import GraphBackend
from serve.backends.open import open_artifact
from serve.engines.llava import Engine
from serve.generation.options import GenerationOptions
from serve.generation.results import Finished, Prefilled, TokenText
from tests.serve.random_llava import DROPS, IMAGE_TOKENS, MAX_POSITIONS, noise

TWELVE = GenerationOptions(max_new_tokens=12, ignore_eos=True)


def of_transformers(checkpoint, images, prompt, new_tokens=12):
    """Greedy token ids and the prompt's ids, by transformers."""
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": prompt}]
    text = checkpoint.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    inputs = checkpoint.processor(text=text, images=list(images) or None, return_tensors="pt")
    with torch.no_grad():
        out = checkpoint.model.generate(
            **inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False
        )
    length = inputs["input_ids"].shape[1]
    return out[0, length:].tolist(), inputs["input_ids"][0].tolist()


@pytest.mark.parametrize("images", [0, 1, 2])
@pytest.mark.parametrize("prompt", ["where is the fox?", "Zürich & {prompt} <b>?\nyes"])
def test_prompt_and_greedy_answer_equal_transformers(dense, checkpoint, images, prompt):
    pictures = [noise(seed) for seed in range(images)]
    expected, ids = of_transformers(checkpoint, pictures, prompt)
    encoded = dense._prompts.encode(prompt, images)
    assert encoded.input_ids.tolist() == ids
    assert encoded.vision.size == images * IMAGE_TOKENS
    answer = dense.generate(pictures, prompt, TWELVE)
    assert list(answer.token_ids) == expected
    assert len(set(expected)) > 3  # a constant answer would prove nothing
    assert answer.finish_reason == "length"
    assert answer.prompt_tokens == len(ids)


def test_eos_ends_the_answer_as_in_transformers(dense_artifact, checkpoint):
    """With the end-of-sequence bias raised, both stop at the same token."""
    pictures = [noise(5)]
    expected, _ = of_transformers(checkpoint, pictures, "what is at the top?")
    eos = expected[4]
    backend = GraphBackend(*open_artifact(dense_artifact, LlavaArtifact, "cpu", 1))
    tokens = backend.manifest.tokens.model_copy(update={"eos_token_ids": (eos,)})
    backend.manifest = backend.manifest.model_copy(update={"tokens": tokens})
    answer = Engine(backend).generate(
        pictures, "what is at the top?", GenerationOptions(max_new_tokens=12)
    )
    assert list(answer.token_ids) == expected[: expected.index(eos)]
    assert answer.finish_reason == "eos"


@pytest.mark.parametrize("name", ["dense", "compressed"])
def test_a_batch_equals_single_answers(name, request):
    engine = request.getfixturevalue(name)
    prompts = ["where is the fox?", "is there a dog?", "where is the cat?", "count the animals."]
    requests = [([noise(i)], prompt) for i, prompt in enumerate(prompts)]
    requests.append(([noise(1), noise(2)], "more?"))
    requests.append(([], "hello you"))
    result = engine.generate_batch(requests, TWELVE, batch_size=3)
    for (images, prompt), answer in zip(requests, result, strict=True):
        alone = engine.generate(images, prompt, TWELVE)
        assert answer.token_ids == alone.token_ids
        assert answer.text == alone.text
        for layer, places in alone.kept.by_layer.items():
            assert np.array_equal(answer.kept.by_layer[layer], places)


def test_sampling_in_a_batch_does_not_depend_on_the_grouping(dense):
    options = GenerationOptions(max_new_tokens=6, temperature=1.0, seed=4, ignore_eos=True)
    requests = [([noise(i)], "where is the fox?") for i in range(3)]
    together = dense.generate_batch(requests, options, batch_size=3)
    apart = dense.generate_batch(requests, options, batch_size=1)
    assert [a.token_ids for a in together] == [a.token_ids for a in apart]
    assert dense.generate(*requests[0], options).token_ids == together[0].token_ids


def test_kept_token_counts_equal_the_plan(compressed, picture):
    answer = compressed.generate([picture], "where is the fox?", TWELVE)
    vision, text = IMAGE_TOKENS, answer.prompt_tokens - IMAGE_TOKENS
    previous = np.arange(answer.prompt_tokens)
    for drop in DROPS:
        places = answer.kept.by_layer[drop.after_layer]
        vision = keep_count(vision, drop.vision_keep_ratio)
        text = keep_count(text, drop.text_keep_ratio)
        assert places.size == vision + text
        assert answer.kept.image_tokens(drop.after_layer).size == vision
        assert np.all(np.diff(places) > 0)
        assert np.isin(places, previous).all()
        assert answer.prompt_tokens - 1 in places
        previous = places


def test_keep_factor_keeps_more_or_fewer(compressed, dense, picture):
    def kept(factor):
        options = GenerationOptions(max_new_tokens=4, keep_factor=factor, ignore_eos=True)
        return compressed.generate([picture], "where is the fox?", options).kept

    assert kept(1.0).image_tokens(1).size == keep_count(IMAGE_TOKENS, 0.5)
    assert kept(0.5).image_tokens(1).size == keep_count(IMAGE_TOKENS, 0.25)
    assert kept(100.0).image_tokens(3).size == IMAGE_TOKENS
    with pytest.raises(CompExportError, match="keep_factor"):
        dense.generate([picture], "?", GenerationOptions(keep_factor=0.5))


def test_stream_adds_up_to_the_answer(compressed, picture):
    events = list(compressed.stream([picture], "where is the fox?", TWELVE))
    assert isinstance(events[0], Prefilled)
    assert isinstance(events[-1], Finished)
    generation = events[-1].generation
    tokens = [event for event in events if isinstance(event, TokenText)]
    assert [event.token_id for event in tokens] == list(generation.token_ids)
    assert "".join(e.text for e in tokens) + events[-1].text == generation.text
    times = generation.timings
    assert times.ttft_ms == pytest.approx(times.prepare_ms + times.vision_ms + times.prefill_ms)
    assert generation.total_ms == pytest.approx(times.ttft_ms + times.decode_ms)
    assert times.decode_steps == 11
    assert min(times.prepare_ms, times.vision_ms, times.prefill_ms, generation.tpot_ms) > 0


def test_stop_string_ends_the_answer(dense, picture):
    whole = dense.generate([picture], "where is the fox?", TWELVE)
    middle = len(whole.text) // 2
    stop = whole.text[middle : middle + 3]
    options = GenerationOptions(max_new_tokens=12, stop=(stop,), ignore_eos=True)
    answer = dense.generate([picture], "where is the fox?", options)
    assert answer.finish_reason == "stop"
    assert answer.text == whole.text[: whole.text.index(stop)].rstrip()
    assert answer.token_ids == whole.token_ids[: len(answer.token_ids)]


def test_sampling_repeats_with_its_seed(dense, picture):
    def text(seed):
        options = GenerationOptions(max_new_tokens=12, temperature=1.5, seed=seed, ignore_eos=True)
        return dense.generate([picture], "where is the fox?", options).token_ids

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_too_long_prompt_names_the_limit(dense, picture):
    with pytest.raises(CompExportError, match=f"{MAX_POSITIONS} positions"):
        dense.generate([picture], "a " * MAX_POSITIONS)
    with pytest.raises(CompExportError, match="positions"):
        dense.generate([picture] * 16, "what?")


def test_generation_ends_at_the_last_position(dense, picture):
    prompt = "a " * (MAX_POSITIONS - IMAGE_TOKENS - 20)
    options = GenerationOptions(max_new_tokens=1000, ignore_eos=True)
    answer = dense.generate([picture], prompt, options)
    assert answer.prompt_tokens + len(answer.token_ids) == MAX_POSITIONS
    assert answer.finish_reason == "length"


def test_prompts_that_do_not_match_their_images_are_refused(dense, picture):
    with pytest.raises(CompExportError, match="empty"):
        dense.generate([picture], "  ")
    with pytest.raises(CompExportError, match="2 <image> but there are 1 images"):
        dense.generate([picture], "<image> or <image>?")


def test_a_prompt_can_place_its_images(dense):
    encoder = dense._prompts
    assert encoder.render("what?", 1) == "USER: <image>\nwhat? ASSISTANT:"
    assert encoder.render("what?", 2) == "USER: <image>\n<image>\nwhat? ASSISTANT:"
    assert encoder.render("what?", 0) == "USER: what? ASSISTANT:"
    own = encoder.render("first <image> then <image>?", 2)
    assert own == "USER: first <image> then <image>? ASSISTANT:"


def test_device_and_threads_are_checked(dense_artifact, tmp_path):
    with pytest.raises(CompExportError, match=r"\.\[gpu\]"):
        Engine.load(dense_artifact, device="cuda")
    with pytest.raises(CompExportError, match="unknown device"):
        Engine.load(dense_artifact, device="tpu")
    with pytest.raises(CompExportError, match="threads 0"):
        Engine.load(dense_artifact, threads=0)
    with pytest.raises(CompExportError, match="no artifact"):
        Engine.load(tmp_path)


@pytest.mark.parametrize("name", ["decoder_model.onnx", "tokenizer.json"])
def test_damaged_files_are_refused_by_name(dense_artifact, tmp_path, name):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(dense_artifact, copy)
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(CompExportError, match=name):
        Engine.load(copy)
    (copy / name).write_bytes(data[:-1])
    with pytest.raises(CompExportError, match=name):
        Engine.load(copy)


def test_a_failing_graph_is_named(dense_artifact, tmp_path):
    """A graph with other inputs gives one line that names the graph and the remedy."""
    from serve.backends.onnxruntime.session import OrtGraph

    path = dense_artifact / "embed_tokens.onnx"
    graph = OrtGraph(onnxruntime.InferenceSession(str(path)), "cpu", path)
    for ids in ([[10**6]], [5]):
        with pytest.raises(CompExportError, match=r"cannot run .*embed_tokens\.onnx: .*--force"):
            graph.run({"input_ids": np.array(ids, np.int64)}, ["inputs_embeds"])


@pytest.mark.parametrize(
    ("flavour", "precision"),
    [("standard", "float32"), ("onnxruntime", "float16"), ("standard", "float16")],
)
def test_other_variants_of_the_artifact_answer_alike(
    flavour, precision, checkpoint, plan, compressed, picture, tmp_path
):
    """The standard flavour answers alike; half precision runs with caches of its own kind."""
    target = Target(flavour, precision)
    export_artifact(checkpoint.path, tmp_path / "onnx", Origin.of_plan(plan), target, plan)
    engine = Engine.load(tmp_path / "onnx", device="cpu", threads=1)
    expected = compressed.generate([picture], "where is the fox?", TWELVE)
    answer = engine.generate([picture], "where is the fox?", TWELVE)
    assert len(answer.token_ids) == 12
    for layer, places in expected.kept.by_layer.items():
        assert answer.kept.by_layer[layer].shape == places.shape
    if precision == "float32":
        assert answer.token_ids == expected.token_ids
    if flavour == "standard":
        with pytest.raises(CompExportError, match="onnxruntime flavour"):
            engine.generate([picture], "?", GenerationOptions(keep_factor=0.5))
