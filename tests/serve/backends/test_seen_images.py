"""Features of images that come again: known by content, bounded, and the same as computed."""

import numpy as np

from serve.backends.seen_images import Seen, SeenImages
from serve.engines.llava import Engine
from serve.generation.options import GenerationOptions
from tests.serve.random_llava import noise


def images(*values):
    return np.stack([np.full((3, 2, 2), value, np.float32) for value in values])


class Tower:
    def __init__(self):
        self.seen = 0

    def __call__(self, pixels):
        self.seen += len(pixels)
        return [Seen(image.reshape(4, 3).astype(np.float32), None) for image in pixels]


def test_an_image_is_computed_once_and_the_longest_unused_goes_first():
    tower, known = Tower(), SeenImages(2 * 48)  # two images
    first = known.of(images(1, 2), tower)
    again = known.of(images(2, 1, 1), tower)
    assert tower.seen == 2
    assert np.array_equal(again[0].features, first[1].features)
    known.of(images(1), tower)
    known.of(images(3), tower)  # 2 goes
    assert tower.seen == 3
    known.of(images(1, 3), tower)
    assert tower.seen == 3
    known.of(images(2), tower)
    assert tower.seen == 4
    assert known.hits + known.misses == 2 + 3 + 1 + 1 + 2 + 1


def test_an_image_larger_than_the_memory_is_not_kept():
    tower, known = Tower(), SeenImages(47)
    for _ in range(2):
        known.of(images(1), tower)
    assert tower.seen == 2


def test_answers_stay_the_same(compressed_artifact):
    engine = Engine.load(compressed_artifact, device="cpu", threads=1)
    options = GenerationOptions(max_new_tokens=8, ignore_eos=True)
    before = [engine.generate([noise(n)], "what is it?", options) for n in (0, 1)]
    known = engine.keep_images(1 << 20)
    for _ in range(2):
        for number, answer in enumerate(before):
            again = engine.generate([noise(number)], "what is it?", options)
            assert again.token_ids == answer.token_ids
    both = engine.generate([noise(0), noise(1)], "what is it?", options)
    assert len(both.token_ids) == 8
    assert (known.hits, known.misses) == (4, 2)
