"""EmojiScenes: deterministic, disjoint, balanced and correct."""

import json
import re
import subprocess
import sys
from collections import Counter
from importlib.resources import files

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from comp.data.emoji_scenes.examples import EmojiScenes
from comp.data.emoji_scenes.questions import KINDS, Question
from comp.data.emoji_scenes.scenes import IMAGE_SIZE, PLACES, Scene, render
from comp.data.emoji_scenes.splits import SPLITS, split_of
from comp.data.emoji_scenes.sprites import CATEGORY_PLURALS, sprites

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven")
SAMPLE = 1200
indices = st.integers(0, 10**7)
splits = st.sampled_from(SPLITS)


def layout(scene: Scene) -> tuple[tuple[str, int, int], ...]:
    """Return the object of each cell, computed independently of the dataset."""
    third = IMAGE_SIZE / 3
    return tuple(sorted((t.name, int(t.y / third), int(t.x / third)) for t in scene.things))


def test_same_index_same_example() -> None:
    first, second = EmojiScenes("test")[17], EmojiScenes("test")[17]
    assert (first.question, first.answer, first.kind) == (
        second.question,
        second.answer,
        second.kind,
    )
    assert np.array_equal(np.asarray(first.image), np.asarray(second.image))


def test_examples_do_not_depend_on_the_hash_seed() -> None:
    code = (
        "import hashlib\n"
        "from comp.data.emoji_scenes.examples import EmojiScenes\n"
        "digest = hashlib.sha256()\n"
        "for i in range(24):\n"
        "    e = EmojiScenes('validation')[i]\n"
        "    digest.update(repr((e.question, e.answer)).encode() + e.image.tobytes())\n"
        "print(digest.hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(digests) == 1


@settings(max_examples=60, deadline=None)
@given(splits, indices)
def test_a_layout_belongs_to_the_split_of_its_scene(split: str, index: int) -> None:
    scene, _ = EmojiScenes(split).scene(index)
    assert split_of(scene) == split


def test_no_layout_is_in_two_splits() -> None:
    seen = {
        split: {layout(EmojiScenes(split).scene(i)[0]) for i in range(SAMPLE)} for split in SPLITS
    }
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]


def test_kinds_are_balanced() -> None:
    counts = Counter(EmojiScenes("test").scene(i)[1].kind for i in range(10 * len(KINDS)))
    assert len(counts) == len(KINDS) >= 8
    assert set(counts.values()) == {10}


@settings(max_examples=100, deadline=None)
@given(splits, indices)
def test_scenes_have_the_documented_sizes(split: str, index: int) -> None:
    scene, question = EmojiScenes(split).scene(index)
    assert 1 <= len(scene.things) <= 7
    for thing in scene.things:
        assert 34 <= thing.size <= 92
        assert thing.size / 2 <= thing.x <= IMAGE_SIZE - thing.size / 2
        assert thing.size / 2 <= thing.y <= IMAGE_SIZE - thing.size / 2
        assert abs(thing.angle) <= 40
    assert question.answer
    assert question.text == question.text.lower().strip()
    image, owner = render(scene)
    assert image.size == (168, 168)
    assert image.mode == "RGB"
    assert owner.shape == (168, 168)
    assert set(np.unique(owner)) <= {-1, *range(len(scene.things))}


def test_every_object_is_visible() -> None:
    for index in range(300):
        scene, _ = EmojiScenes("test").scene(index)
        _, owner = render(scene)
        for number, thing in enumerate(scene.things):
            assert (owner == number).sum() > 0.1 * thing.size**2, (index, thing)


def test_backgrounds_and_sizes_vary() -> None:
    images = [np.asarray(EmojiScenes("test")[i].image) for i in range(40)]
    corners = {tuple(image[0, 0]) for image in images}
    assert len(corners) > 35
    sizes = [t.size for i in range(100) for t in EmojiScenes("test").scene(i)[0].things]
    assert max(sizes) > 2 * min(sizes)


def test_every_kind_has_several_wordings() -> None:
    names = "|".join(
        re.escape(n) for n in sorted({*sprites(), *CATEGORY_PLURALS.values()}, key=len)[::-1]
    )
    wordings: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for i in range(SAMPLE):
        question = EmojiScenes("train").scene(i)[1]
        wordings[question.kind].add(re.sub(names, "_", question.text))
    assert all(len(result) >= 3 for result in wordings.values()), wordings


def test_answers_are_right() -> None:
    for index in range(SAMPLE):
        scene, question = EmojiScenes("test").scene(index)
        assert CHECKS[question.kind](scene, question), (index, scene, question)


def test_sprites_and_their_attribution_are_in_the_package() -> None:
    assert len(sprites()) == 168
    assert {sprite.category for sprite in sprites().values()} == set(CATEGORY_PLURALS)
    folder = files("comp.data") / "emoji"
    assert "Apache License" in (folder / "ATTRIBUTION.md").read_text()
    assert len(json.loads((folder / "labels.json").read_text())["emoji"]) == 168


# --- An independent answer to each kind of question, from the scene's coordinates ----------------


def named(question: str, scene_names: set[str]) -> list[str]:
    """Return the names in a question, in order; of overlapping names the longest."""
    pattern = "|".join(re.escape(n) for n in sorted(scene_names, key=len, reverse=True))
    return re.findall(rf"\b(?:{pattern})\b", question)


def place_of(x: float, y: float) -> str:
    third = IMAGE_SIZE / 3
    return PLACES[int(y / third)][int(x / third)]


def category(name: str) -> str:
    return sprites()[name].category


def place_in_question(question: str) -> str:
    places = [place for row in PLACES for place in row]
    return max((p for p in places if re.search(rf"\b{p}\b", question)), key=len)


def check_where(scene: Scene, q: Question) -> bool:
    (name,) = named(q.text, set(sprites()))
    (thing,) = [t for t in scene.things if t.name == name]
    return q.answer == place_of(thing.x, thing.y)


def check_at(scene: Scene, q: Question) -> bool:
    there = [t.name for t in scene.things if place_of(t.x, t.y) == place_in_question(q.text)]
    return there == [q.answer]


def check_exists(scene: Scene, q: Question) -> bool:
    (name,) = named(q.text, set(sprites()))
    return (q.answer == "yes") == (name in {t.name for t in scene.things})


def check_count(scene: Scene, q: Question) -> bool:
    (name,) = named(q.text, set(sprites()))
    return q.answer == NUMBERS[sum(t.name == name for t in scene.things)]


def check_count_category(scene: Scene, q: Question) -> bool:
    (plural,) = named(q.text, set(CATEGORY_PLURALS.values()))
    return q.answer == NUMBERS[sum(CATEGORY_PLURALS[t.category] == plural for t in scene.things)]


def check_relation(scene: Scene, q: Question) -> bool:
    first, second = (
        next(t for t in scene.things if t.name == name) for name in named(q.text, set(sprites()))
    )
    holds = {
        "left of": first.x < second.x,
        "right of": first.x > second.x,
        "above": first.y < second.y,
        "below": first.y > second.y,
    }
    (wanted_word,) = [relation for relation in holds if f" {relation} " in q.text]
    return (q.answer == "yes") == holds[wanted_word]


def check_extreme(scene: Scene, q: Question) -> bool:
    keys = {
        "left": lambda t: t.x,
        "right": lambda t: -t.x,
        "top": lambda t: t.y,
        "low": lambda t: -t.y,
        "bottom": lambda t: -t.y,
    }
    (wanted_word,) = [word for word in keys if word in q.text]
    return q.answer == min(scene.things, key=keys[wanted_word]).name


def check_size(scene: Scene, q: Question) -> bool:
    largest = "largest" in q.text or "biggest" in q.text
    ranked = sorted(scene.things, key=lambda t: t.size, reverse=largest)
    return q.answer == ranked[0].name and ranked[0].size != ranked[1].size


def check_more(scene: Scene, q: Question) -> bool:
    first, second = named(q.text, set(CATEGORY_PLURALS.values()))
    counts = Counter(CATEGORY_PLURALS[t.category] for t in scene.things)
    return counts[first] != counts[second] and q.answer == max((first, second), key=counts.get)


def check_category(scene: Scene, q: Question) -> bool:
    if len(scene.things) == 1:
        return q.answer == scene.things[0].category
    there = [t for t in scene.things if place_of(t.x, t.y) == place_in_question(q.text)]
    return [t.category for t in there] == [q.answer]


def check_odd(scene: Scene, q: Question) -> bool:
    counts = Counter(t.category for t in scene.things)
    return counts[category(q.answer)] == 1 and len(counts) == 2 and len(scene.things) > 2


def check_list(scene: Scene, q: Question) -> bool:
    return q.answer == ", ".join(t.name for t in sorted(scene.things, key=lambda t: t.x))


CHECKS = {kind: globals()[f"check_{kind}"] for kind in KINDS}
