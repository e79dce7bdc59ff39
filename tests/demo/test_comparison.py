"""One request to both models, and pictures of the kept tokens."""

import numpy as np
import pytest
from PIL import Image

from comp.errors import CompExportError
from comp.plan import keep_count
from demo import comparison
from demo.cards.kept_tokens import DIM, PAPER, KeptView, Patches, data_uri, kept_picture, spread
from demo.comparison import Comparison, Side, answering, in_turn
from demo.pair import Pair
from export.exporter import Origin, artifact_directory, export_artifact
from export.graph.builder import Target
from serve.artifacts import ArtifactVariant
from serve.generation.options import GenerationOptions
from tests.serve.random_llava import noise

OPTIONS = GenerationOptions(max_new_tokens=5, ignore_eos=True)


def compared(pair, picture, options):
    return list(in_turn(answering(pair, picture, "where?", options)))


def test_the_original_finishes_before_the_compressed_starts(pair, picture):
    moments = compared(pair, picture, OPTIONS)
    states = [(now.dense.state, now.compressed.state) for now in moments]
    assert states[0] == ("working", "waiting")
    assert states[-1] == ("done", "done")
    assert ("working", "working") not in states
    alone = pair.compressed.generate([picture], "where?", OPTIONS)
    assert moments[-1].compressed.text == alone.text
    assert moments[-1].dense.text == pair.dense.generate([picture], "where?", OPTIONS).text
    assert [now.measured for now in moments] == [False] * (len(moments) - 1) + [True]


def test_timed_runs_are_of_equal_length(pair, picture, monkeypatch):
    """As long as the longer answer with its end, even if the other model ends earlier."""
    monkeypatch.setattr(comparison, "TIMED_SECONDS", 60.0)
    options = GenerationOptions(max_new_tokens=12)
    last = compared(pair, picture, options)[-1]
    sides = (last.dense, last.compressed)
    longest = max(len(side.result.token_ids) for side in sides)
    lengths = {len(run.token_ids) for side in sides for run in side.timed}
    assert lengths == {min(longest + 1, 12)}
    assert [len(side.timed) for side in sides] == [comparison.TIMED_RUNS] * 2


def test_slow_models_are_timed_once(monkeypatch):
    monkeypatch.setattr(comparison, "DRAWING_SECONDS", 0.0)
    monkeypatch.setattr(comparison, "TIMED_SECONDS", 0.0)
    ran = []
    last = list(in_turn(comparison.at_once(ran.append)))[-1]
    assert last.measured
    assert ran == ["dense", "compressed"] * 2


def test_the_keep_factor_affects_only_the_compressed_model(pair, picture):
    options = GenerationOptions(max_new_tokens=2, keep_factor=0.5, ignore_eos=True)
    last = compared(pair, picture, options)[-1]
    assert last.compressed.result.kept.image_tokens(1).size == keep_count(16, 0.25)
    assert pair.can_scale


def test_kept_pictures_of_an_answer(pair, picture):
    answer = pair.compressed.generate([picture], "where?", OPTIONS)
    view = KeptView.of(pair.compressed.manifest, picture, answer.kept)
    assert view.seen.size == (56, 56)
    assert view.places == 2
    assert [p.place for p in view.pictures] == ["layer 1", "layer 3"]
    assert [p.kept for p in view.pictures] == [8, 4]
    assert {p.of for p in view.pictures} == {16}


@pytest.mark.parametrize(
    ("places", "shown"),
    [(0, []), (1, [1]), (4, [1, 2, 3, 4]), (5, [1, 2, 4, 5]), (12, [1, 5, 8, 12])],
)
def test_at_most_four_drop_places_are_shown(places, shown):
    assert spread(range(1, places + 1)) == shown


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


def test_pictures_are_embedded_in_the_page():
    assert data_uri(Image.new("RGBA", (3, 3))).startswith("data:image/webp;base64,")


def test_a_run_without_artifacts_is_refused(tmp_path):
    with pytest.raises(CompExportError, match=r"is no run: run\.json is missing"):
        Pair.load(tmp_path)


def test_another_variant_of_the_run_gives_the_same_answer(run, checkpoint, plan, pair):
    """The standard artifacts give the same answers, and have no keep factor."""
    target = Target("standard")
    for dense, origin, cut in ((True, Origin("t"), None), (False, Origin.of_plan(plan), plan)):
        out = artifact_directory(run, dense, target)
        export_artifact(checkpoint.path, out, origin, target, cut)
    other = Pair.load(run, device="cpu", threads=1, variant=ArtifactVariant("standard"))
    assert (pair.can_scale, other.can_scale) == (True, False)
    options = GenerationOptions(max_new_tokens=4)
    for first, second in ((pair.dense, other.dense), (pair.compressed, other.compressed)):
        ids = [e.generate([noise(3)], "where?", options).token_ids for e in (first, second)]
        assert ids[0] == ids[1]


def test_missing_engines_name_the_command_that_builds_them(run):
    with pytest.raises(CompExportError, match="comp-export tensorrt"):
        Pair.load(run, variant=ArtifactVariant.choose("tensorrt"))


def test_initial_comparison_is_ready():
    assert Comparison() == Comparison(Side("dense", "ready"), Side("compressed", "ready"))
