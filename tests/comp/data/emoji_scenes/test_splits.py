"""Splits of all kinds of EmojiScenes' examples, and that no example has changed.

Models were trained and figures measured on these very examples: a change of one is a new data set.
"""

import hashlib

import pytest

from comp.data.emoji_scenes.captions import EmojiCaptions, captions_of
from comp.data.emoji_scenes.examples import EmojiScenes
from comp.data.emoji_scenes.scenes import Scene
from comp.data.emoji_scenes.splits import SPLITS, split_of
from comp.data.emoji_scenes.statements import EmojiStatements

KINDS = (EmojiScenes, EmojiCaptions, EmojiStatements)
N = 120
DIGESTS = {
    ("EmojiScenes", "train"): "46f349ecf59f8d69",
    ("EmojiScenes", "validation"): "cc0d7232c9f5c6ca",
    ("EmojiScenes", "test"): "7d3b0976854482e6",
    ("EmojiCaptions", "train"): "1b5f79ba01316384",
    ("EmojiCaptions", "validation"): "5fcedae61cd9fc54",
    ("EmojiCaptions", "test"): "dc30547db9262cec",
    ("EmojiStatements", "train"): "aab19e7f17791b87",
    ("EmojiStatements", "validation"): "53158ee0f9eff91a",
    ("EmojiStatements", "test"): "24683e22dd672dda",
}


def drawn(data: object, index: int) -> tuple[tuple[Scene, ...], tuple[object, ...]]:
    """Return the scenes of an example, not drawn, and its text."""
    if isinstance(data, EmojiScenes):
        scene, question = data.scene(index)
        return (scene,), (question.text, question.answer, question.kind)
    if isinstance(data, EmojiCaptions):
        scene = data.scene(index)
        return (scene,), captions_of(scene)
    assert isinstance(data, EmojiStatements)
    scenes, example = data.scenes(index)
    return scenes, (example.text, example.answer, example.kind, example.facts)


def written(scene: Scene) -> str:
    """Round a scene to a thousandth of a pixel and of a degree."""
    things = (f"{t.name} {t.x:.3f} {t.y:.3f} {t.size:.3f} {t.angle:.3f}" for t in scene.things)
    return f"{', '.join(things)} on {scene.background_seed}"


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", KINDS)
def test_examples_are_unchanged(kind: type, split: str) -> None:
    digest = hashlib.sha256()
    data = kind(split)
    for index in range(N):
        scenes, words = drawn(data, index)
        digest.update(repr(([written(scene) for scene in scenes], words)).encode())
        assert {split_of(scene) for scene in scenes} == {split}
    assert digest.hexdigest()[:16] == DIGESTS[kind.__name__, split]


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_splits_and_indices_are_refused(kind: type) -> None:
    with pytest.raises(ValueError, match="unknown split 'dev': choose one of train, validation"):
        kind("dev")
    with pytest.raises(IndexError):
        kind("test")[-1]
    assert len(kind("test", 7)) == 7
