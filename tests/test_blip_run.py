"""BLIP's four tasks through every verb, as a user runs them, on small random checkpoints.

The checkpoints are saved by transformers (NLVR's by our own class).
"""

import json
import shutil
from functools import cache

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from comp.adapter import Forwarding
from comp.cli import cli
from comp.data.embedded import embedded_examples
from comp.errors import CompExportError
from comp.families.loading import load_adapter
from comp.metrics.cider import cider
from comp.plan import PruningPlan
from comp.tokens.drop_rules import rules_from_plan
from export.artifact.load import read_manifest
from serve.engines.blip_retriever import BlipRetriever
from serve.generation.options import GenerationOptions
from serve.loading import load_engine
from tests.comp.small_blip import TASKS, examples_of

GRAPHS = {
    "question": {"vision_model", "text_encoder", "cross_kv", "decoder_model"},
    "caption": {"vision_model", "cross_kv", "decoder_model"},
    "statement": {"vision_model", "text_encoder"},
    "retrieval": {"vision_model", "text_model", "itm_model"},
}
SHORT = GenerationOptions(max_new_tokens=6)
BRIEF = ("--max-new-tokens", "6", "--answer-seconds", "2")


def call(*arguments):
    return CliRunner().invoke(cli, [str(each) for each in arguments], catch_exceptions=False)


def called(*arguments):
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def runs(fresh_run):
    """A run of each task, pruned and exported."""
    return cache(fresh_run)


@pytest.fixture
def pictures(tmp_path):
    for number in range(2):
        embedded_examples("caption", "test", 2)[number].image.save(tmp_path / f"{number}.png")
    return [tmp_path / f"{number}.png" for number in range(2)]


@pytest.mark.parametrize("task", TASKS)
def test_the_manifest_describes_the_artifact(runs, task):
    run = runs(task)
    plan = PruningPlan.load(run / "plan.json")
    slim, dense = (read_manifest(run / name) for name in ("onnx", "onnx-dense"))
    assert (slim.family, slim.task, slim.dense, dense.dense) == ("blip", task, False, True)
    assert slim.macs.artifact == plan.macs < slim.macs.dense == plan.macs_dense
    assert dense.macs.artifact == plan.macs_dense
    assert slim.params < dense.params
    for manifest in (slim, dense):
        graphs = {entry.name for entry in manifest.files if entry.name.endswith(".onnx")}
        assert graphs == {f"{name}.onnx" for name in GRAPHS[task]}


# All tasks are verified with engines as well: tests/test_encoder_engines_run.py.
@pytest.mark.parametrize("task", ["question", "statement"])
def test_verify_passes_and_fails_on_other_weights(runs, task, tmp_path):
    run = runs(task)
    report = called("verify", run, "--questions", "4", *BRIEF)
    assert report["ok"]
    assert len(report["links"]) == 3
    assert all(link["max_logit_difference"] < 1e-4 for link in report["links"])
    drops = PruningPlan.load(run / "plan.json").drops
    texts = sum(drop.part == "language" for drop in drops)
    again = texts if task == "retrieval" else 0  # its text is read twice
    assert len(report["links"][1]["kept"]) == len(drops) + again > 0
    assert read_manifest(run / "onnx").verified.ok
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    adapter = load_adapter(copy / "checkpoint")
    with torch.no_grad():
        adapter.layers[-1].output.dense.bias += 0.3 * torch.randn(64)
    adapter.save(copy / "checkpoint")
    few = ("--questions", "3", "--max-new-tokens", "6", "--answer-seconds", "0")
    result = call("verify", copy, *few, "--json")
    assert result.exit_code == 1
    assert [link["ok"] for link in json.loads(result.stdout)["links"]] == [True, False, True]
    assert not read_manifest(copy / "onnx").verified.ok


@pytest.mark.parametrize("task", ["question", "caption"])
def test_answers_equal_the_slim_model(runs, task):
    """Greedy texts of the artifact, alone, streamed and in batches, and ``generate`` of transformers."""
    run = runs(task)
    engine = load_engine(run / "onnx")
    adapter = load_adapter(run / "checkpoint")
    tokenizer = adapter.processor.tokenizer
    examples = examples_of(task, 6, "test")
    requests = [([each.image], each.question) for each in examples]
    together = engine.generate_batch(requests, SHORT, batch_size=4)
    for example, actual in zip(examples, together, strict=True):
        alone = engine.generate([example.image], example.question, SHORT)
        assert alone.token_ids == actual.token_ids
        batch = adapter.collate([example])
        inputs = {"input_ids": batch.input_ids} if task == "question" else {}
        generated = adapter.model.generate(
            pixel_values=batch.pixel_values, max_new_tokens=6, do_sample=False, **inputs
        )
        assert tokenizer.decode(generated[0], skip_special_tokens=True) == actual.text
        assert len(actual.kept.seen()) == sum(
            drop.part == "vision" for drop in PruningPlan.load(run / "plan.json").drops
        )
        assert actual.timings.vision_ms > 0
    drawn = GenerationOptions(max_new_tokens=6, temperature=1.0, seed=3)
    again = [engine.generate(*requests[0], drawn).text for _ in range(2)]
    assert again[0] == again[1]


def test_a_caption_continues_its_prefix(runs, pictures):
    run = runs("caption")
    adapter = load_adapter(run / "checkpoint")
    actual = called("run", run, "--image", pictures[0], "--prompt", "a picture of")
    engine = load_engine(run / "onnx")
    free = engine.generate([pictures[0]], "", SHORT)
    begun = engine.generate([pictures[0]], "a picture of", SHORT)
    assert actual["prompt_tokens"] == begun.prompt_tokens > free.prompt_tokens == 1
    example = embedded_examples("caption", "test", 1)[0]
    ids = adapter.processor.tokenizer("a picture of", return_tensors="pt")["input_ids"]
    pixels = adapter.collate([example]).pixel_values
    generated = adapter.model.generate(pixels, ids, max_new_tokens=6, do_sample=False)[0]
    text = adapter.processor.tokenizer.decode(
        generated[ids.shape[1] - 1 :], skip_special_tokens=True
    )
    assert text == begun.text


def test_judgements_equal_the_slim_model(runs):
    run = runs("statement")
    engine = load_engine(run / "onnx")
    adapter = load_adapter(run / "checkpoint")
    pairs = examples_of("statement", 6, "test")
    judged = engine.judge_batch([(pair.images, pair.statement) for pair in pairs])
    for pair, actual in zip(pairs, judged, strict=True):
        batch = adapter.collate([pair])
        with torch.no_grad():
            logits = adapter.model(
                batch.input_ids, batch.pixel_values.unflatten(0, (1, 2)), batch.attention_mask
            ).logits
        assert actual.probability == pytest.approx(logits.softmax(-1)[0, 1].item(), abs=1e-5)
        swapped = engine.judge(pair.images[::-1], pair.statement)
        assert swapped.probability != pytest.approx(actual.probability, abs=1e-7)
        assert [len(rows) for rows in actual.kept.by_place.values()].count(2) == 3


def test_ranking_is_embeddings_then_matching(runs):
    """Compare with brute force: match all pairs in torch, and count only the likeliest."""
    run = runs("retrieval")
    engine = load_engine(run / "onnx")
    assert isinstance(engine, BlipRetriever)
    adapter = load_adapter(run / "checkpoint")
    examples = examples_of("retrieval", 5, "test")
    batch = adapter.collate(examples)
    model = adapter.model
    with torch.no_grad():
        cosines = model(
            batch.input_ids,
            batch.pixel_values,
            use_itm_head=False,
            attention_mask=batch.attention_mask,
        ).itm_score
        rows = [
            model(
                batch.input_ids,
                batch.pixel_values[image : image + 1].expand(5, -1, -1, -1),
                attention_mask=batch.attention_mask,
            ).itm_score[:, 1]
            for image in range(5)
        ]
    matched = torch.stack(rows)  # [I, T]
    for likely in (2, 5):
        seen = engine.embed_images([each.image for each in examples])
        of_texts, of_images = engine.match(
            seen, engine.embed_texts([each.answer for each in examples]), likely
        )
        for scores, cosine, match in (
            (of_texts, cosines, matched),
            (of_images, cosines.T, matched.T),
        ):
            for row in range(5):
                best = cosine[row].topk(likely).indices.tolist()
                for column in range(5):
                    expected = cosine[row, column].item()
                    expected += match[row, column].item() if column in best else -100
                    assert scores[row, column] == pytest.approx(expected, abs=1e-3)


def test_eval_has_the_metric_of_each_task(runs):
    evaluated = called("eval", runs("question"), "--limit", "24", "--max-new-tokens", "4")
    assert len(evaluated["compressed"]["by_kind"]) == 12
    judged = called("eval", runs("statement"), "--limit", "20")
    adapter = load_adapter(runs("statement") / "checkpoint")
    batch = adapter.collate([embedded_examples("statement", "test", 20)[i] for i in range(20)])
    with torch.no_grad():
        right = adapter.score(batch, Forwarding(rules=_rules(runs("statement")))).judge()
    assert judged["compressed"]["right"] == int(right.sum())
    ranked = called("eval", runs("retrieval"), "--limit", "12", "--gallery", "6")
    assert ranked["metric"] == "R@1, both ways, among 6"
    outcome = called("eval", runs("caption"), "--limit", "6", "--max-new-tokens", "4")
    engine = load_engine(runs("caption") / "onnx")
    examples = [embedded_examples("caption", "test", 6)[i] for i in range(6)]
    options = GenerationOptions(max_new_tokens=4)
    texts = [engine.generate([each.image], "", options).text for each in examples]
    assert outcome["compressed"]["by_kind"]["CIDEr-D"]["mean"] == pytest.approx(
        np.mean(cider(texts, [each.answers for each in examples]))
    )


def _rules(run):
    return rules_from_plan(PruningPlan.load(run / "plan.json").drops)


@pytest.mark.parametrize("task", TASKS)
def test_bench_and_run(runs, task, pictures):
    run = runs(task)
    words = ("--repeats", "2", "--warmup", "1", "--cold-starts", "1", "--new-tokens", "3")
    report = called("bench", run, *words)
    generates = task in ("question", "caption")
    assert (report["dense"]["tpot_ms"] > 0) == generates
    assert report["workload"]["new_tokens"] == (3 if generates else 0)
    images = ["--image", pictures[0], *(["--image", pictures[1]] if task == "statement" else [])]
    prompt = [] if task == "caption" else ["--prompt", "where is the fox?"]
    short = ["--max-new-tokens", "4"] if generates else []
    actual = called("run", run, *images, *prompt, *short)
    shown = {"statement": "verdict", "retrieval": "scores"}.get(task, "text")
    assert shown in actual
    assert actual["kept"]
    assert call("run", run, *images, *prompt, "--dense", *short).exit_code == 0


REFUSED = [
    ("question", ["{0}", "{0}"], ["what?"], "2 images, and this model looks at one"),
    ("question", ["{0}"], [], "--prompt is missing: a question takes 1"),
    ("question", ["{0}"], [""], "a question is empty"),
    ("question", ["{0}"], ["where " * 80], "has 82 tokens, the model has 64 positions"),
    ("caption", ["{0}", "{0}"], [], "give --image once: a caption takes 1, not 2"),
    ("caption", ["{0}"], ["fox " * 80], "has 82 tokens, the model has 64 positions"),
    ("statement", ["{0}"], ["both are red"], "give --image twice: a statement about two images"),
    (
        "statement",
        ["{0}"] * 3,
        ["both are red"],
        "give --image twice: a statement about two images takes 2, not 3",
    ),
    ("statement", ["{0}"] * 2, [" "], "a statement is empty"),
    ("retrieval", ["{0}"], [], "--prompt is missing: retrieval takes at least 1"),
]


@pytest.mark.parametrize(("task", "images", "prompts", "message"), REFUSED)
def test_run_refuses_bad_input(runs, pictures, task, images, prompts, message):
    shown = [word for name in images for word in ("--image", name.format(pictures[0]))]
    outcome = [word for prompt in prompts for word in ("--prompt", prompt)]
    with pytest.raises(CompExportError, match=message):
        call("run", runs(task), *shown, *outcome)


def test_keep_factors_are_refused(runs, pictures):
    """BLIP's graphs have no input for one, so ignoring it would be wrong."""
    with pytest.raises(CompExportError, match=r"keep_factor 2.0: BLIP's graphs"):
        call("run", runs("caption"), "--image", pictures[0], "--keep-factor", "2")
    both = ("--image", pictures[0], "--image", pictures[1], "--prompt", "both are red")
    with pytest.raises(CompExportError, match="a statement model generates no text"):
        call("run", runs("statement"), *both, "--keep-factor", "2")


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        example = embedded_examples("caption", "test", 3)[number]
        example.image.save(tmp_path / f"COCO_val2014_{number:012d}.jpg", quality=100)
    return tmp_path


def test_eval_of_vqav2_uses_the_official_accuracy(runs, folder):
    """Two of ten people agree with the model: 0.6 by the official rule, over all leave-one-outs."""
    engine = load_engine(runs("question") / "onnx")
    names = sorted(folder.glob("*.jpg"))
    outcome = engine.generate([names[0]], "what is it?", GenerationOptions(max_new_tokens=3)).text
    people = [outcome] * 2 + ["nothing of the kind"] * 8
    evaluated = [{"image_id": 0, "question": "what is it?", "question_id": 7}]
    answered = [
        {
            "question_id": 7,
            "image_id": 0,
            "answer_type": "other",
            "multiple_choice_answer": "nothing of the kind",
            "answers": [{"answer": answer} for answer in people],
        }
    ]
    questions = folder / "v2_OpenEnded_mscoco_val2014_questions.json"
    questions.write_text(json.dumps({"questions": evaluated, "data_subtype": "val2014"}))
    annotations = folder / "v2_mscoco_val2014_annotations.json"
    annotations.write_text(json.dumps({"annotations": answered, "data_subtype": "val2014"}))
    words = ("--data", questions, "--images", folder, "--max-new-tokens", "3")
    report = called("eval", runs("question"), *words)
    assert report["compressed"]["accuracy"] == pytest.approx(0.6)
    assert report["compressed"]["n"] == 1


def test_eval_of_karpathy_uses_all_captions_of_an_image(runs, folder):
    records = [
        {
            "filename": name.name,
            "split": "test",
            "sentences": [{"raw": f"{word} number {number}"} for word in ("a", "the", "one")],
        }
        for number, name in enumerate(sorted(folder.glob("*.jpg")))
    ]
    path = folder / "dataset.json"
    path.write_text(json.dumps({"images": records}))
    report = called("eval", runs("retrieval"), "--data", path, "--images", folder)
    kinds = report["compressed"]["by_kind"]
    assert kinds["R@1, texts of an image"]["n"] == 3
    assert kinds["R@1, images of a text"]["n"] == 9
    assert kinds["R@10, images of a text"]["right"] == 9
    outcome = called("eval", runs("caption"), "--data", path, "--images", folder)
    # No thing of EmojiScenes is in these captions: the consensus with people is the only measure.
    assert set(outcome["compressed"]) == {"mean", "ci95", "n", "by_kind"}
    assert not outcome["compressed"]["by_kind"]


def test_eval_runs_on_nlvr2(runs, folder):
    names = sorted(path.name for path in folder.glob("*.jpg"))
    lines = [
        {"images": names[:2], "statement": "both show a fox", "label": label}
        for label in (True, False)
    ]
    path = folder / "mine.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    report = called("eval", runs("statement"), "--data", path, "--images", folder)
    assert report["compressed"]["right"] == 1  # one of the two must be so
    assert report["compressed"]["n"] == 2
