"""Both models asked in turn, and the kept tokens drawn."""

import numpy as np
import pytest
from PIL import Image

from comp.errors import CompExportError
from comp.plan import keep_count
from demo.comparison import Comparison, Pair, Side
from demo.examples import QUESTIONS_EACH, page_examples
from demo.kept_tokens import DIM, PAPER, Patches, data_uri, kept_picture
from export.artifact import Origin, artifact_directory, export_artifact
from export.graph.builder import Target
from serve.artifacts import Form
from serve.options import GenerationOptions
from tests.serve.random_llava import noise

OPTIONS = GenerationOptions(max_new_tokens=5, ignore_eos=True)


def test_the_original_is_done_before_the_compressed_begins(pair, picture):
    moments = list(pair.compare(picture, "where?", OPTIONS))
    states = [(now.dense.state, now.compressed.state) for now in moments]
    assert states[0] == ("answering", "waiting")
    assert states[-1] == ("done", "done")
    assert ("answering", "answering") not in states
    alone = pair.compressed.generate([picture], "where?", OPTIONS)
    assert moments[-1].compressed.text == alone.text
    assert moments[-1].dense.text == pair.dense.generate([picture], "where?", OPTIONS).text


def test_a_keep_factor_is_of_the_compressed_model_alone(pair, picture):
    options = GenerationOptions(max_new_tokens=2, keep_factor=0.5, ignore_eos=True)
    last = list(pair.compare(picture, "where?", options))[-1]
    assert last.compressed.generation.kept.image_tokens(1).size == keep_count(16, 0.25)
    assert pair.can_scale


def test_kept_pictures_of_an_answer(pair, picture):
    answer = pair.compressed.generate([picture], "where?", OPTIONS)
    view, pictures = pair.kept_pictures(picture, answer)
    assert view.size == (56, 56)
    assert [p.place for p in pictures] == ["layer 1", "layer 3"]
    assert [p.kept for p in pictures] == [8, 4]
    assert {p.of for p in pictures} == {16}


@pytest.mark.parametrize("class_token", [False, True])
def test_dropped_patches_fade_and_kept_ones_stay(class_token):
    patches = Patches(image_size=28, patch_size=14, tokens=4 + class_token, class_token=class_token)
    view = Image.fromarray(np.full((28, 28, 3), (200, 100, 0), dtype=np.uint8))
    kept = np.array([1, 2]) + class_token
    drawn = np.asarray(kept_picture(view, patches, kept, "layer 2").picture)
    assert (drawn[:14, 14:] == (200, 100, 0)).all()
    assert (drawn[14:, :14] == (200, 100, 0)).all()
    faded = round((1 - DIM) * 100 + DIM * PAPER)
    assert (drawn[:14, :14] == faded).all()
    assert (drawn[14:, 14:] == faded).all()


def test_examples_are_the_same_every_time_and_of_the_test_split():
    examples = page_examples()
    assert all(len(example.questions) == QUESTIONS_EACH for example in examples)
    first = examples[0]
    text, answer = first.questions[0]
    assert first.answer_to(f" {text} ") == answer
    assert first.answer_to("something else?") is None
    page_examples.cache_clear()
    assert [e.questions for e in page_examples()] == [e.questions for e in examples]


def test_pictures_are_inside_the_page():
    assert data_uri(Image.new("RGBA", (3, 3))).startswith("data:image/webp;base64,")


def test_a_run_without_artifacts_is_refused(tmp_path):
    with pytest.raises(CompExportError, match="no run at"):
        Pair.load(tmp_path)


def test_another_form_of_the_run(run, checkpoint, plan, pair):
    """The standard artifacts give the same answers, and have no factor for the keep ratios."""
    target = Target("standard")
    for dense, origin, cut in ((True, Origin("t"), None), (False, Origin.of_plan(plan), plan)):
        out = artifact_directory(run, dense, target)
        export_artifact(checkpoint.path, out, origin, target, cut)
    other = Pair.load(run, device="cpu", threads=1, form=Form("standard"))
    assert (pair.can_scale, other.can_scale) == (True, False)
    options = GenerationOptions(max_new_tokens=4)
    for first, second in ((pair.dense, other.dense), (pair.compressed, other.compressed)):
        ids = [e.generate([noise(3)], "where?", options).token_ids for e in (first, second)]
        assert ids[0] == ids[1]


def test_engines_that_were_not_built_are_asked_for(run):
    with pytest.raises(CompExportError, match="comp-export tensorrt"):
        Pair.load(run, form=Form.choose("tensorrt"))


def test_the_start_is_ready():
    assert Comparison() == Comparison(Side("dense", "ready"), Side("compressed", "ready"))
