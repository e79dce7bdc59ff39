"""Training tiny-smolvlm: its tokens and targets are those that transformers makes of the same picture."""

import numpy as np
import pytest
import torch
from PIL import Image

from comp.checkpoints.tiling import grid_of
from comp.data.emoji_scenes.examples import EmojiScenes
from comp.data.emoji_scenes.scenes import SIZES, SQUARE, render
from comp.tiny_models import tiny_smolvlm
from comp.tiny_models.picture_layout import TiledPicture
from comp.tiny_models.question_training import train
from comp.tiny_models.scene_batches import SceneBatches
from comp.tiny_models.train_tiny_smolvlm import SmolVLMRecipe, SmolVLMTrainee, new_model

MIB = 2**20


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_smolvlm.smolvlm_tokenizer()


@pytest.fixture(scope="module")
def layout(tokenizer):
    return TiledPicture(tokenizer, tiny_smolvlm.GRID, tiny_smolvlm.TILES, tiny_smolvlm.RESAMPLE)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return new_model(ranked_on=2).eval()


@pytest.mark.parametrize("size", SIZES)
def test_the_tokens_of_a_picture_are_those_of_transformers(layout, tokenizer, size):
    picture = EmojiScenes("train", picture=size)[0].image
    processor = tiny_smolvlm.tiny_smolvlm_processor(tokenizer)
    made = processor(images=[picture], text="USER: <image>\nwhat?", return_tensors="np")
    tail = len(tokenizer.encode("what?", add_special_tokens=False))
    assert layout.prefix(picture.size) == made["input_ids"][0][:-tail].tolist()
    scaled = layout.pixels(picture).astype(np.float32) / 127.5 - 1
    assert np.abs(scaled.transpose(0, 3, 1, 2) - made["pixel_values"][0]).max() < 1e-5


@pytest.mark.parametrize("size", SIZES)
def test_targets_are_of_what_a_token_shows(layout, size):
    scene, _ = EmojiScenes("train", picture=size).scene(3)
    picture, owner = render(scene)
    targets = layout.targets(scene, owner)
    tiles = grid_of(*picture.size, layout.tiles).tiles
    assert targets["patch_word"].shape == (tiles * tiny_smolvlm.GRID**2,)
    whole = targets["patch_word"][-(tiny_smolvlm.GRID**2) :]
    nothing = layout.word_ids["nothing"]
    # What is seen in the whole picture is seen in its tiles too.
    assert set(whole) - {nothing} <= set(targets["patch_word"][: -(tiny_smolvlm.GRID**2)])
    for index, thing in enumerate(scene.things):
        if (owner == index).sum() > 0.4 * thing.size**2:
            row = int(thing.y / picture.height * tiny_smolvlm.GRID)
            column = int(thing.x / picture.width * tiny_smolvlm.GRID)
            assert targets["patch_centre"][-(tiny_smolvlm.GRID**2) :][
                row * tiny_smolvlm.GRID + column
            ]


def test_a_picture_in_one_colour_is_seen_where_it_is(layout):
    """The token of a thing is at its place: a map with one thing in the lower right quarter."""
    owner = np.full((168, 168), -1, dtype=np.int8)
    owner[84:, 84:] = 0
    scene, _ = EmojiScenes("train").scene(0)
    words = layout.targets(scene, owner)["patch_word"].reshape(5, 16)
    mine = layout.word_ids[scene.things[0].name]
    assert [(tile == mine).all() for tile in words[:4]] == [False, False, False, True]
    assert (words[:3] != mine).all()
    corner = words[4].reshape(4, 4) == mine
    assert corner[2:, 2:].all()
    assert corner.sum() == 4


def test_image_tokens_are_those_of_transformers(layout, model):
    pictures = [EmojiScenes("train")[index].image for index in range(2)]
    pixels = torch.from_numpy(np.stack([layout.pixels(picture) for picture in pictures]))
    trainee = SmolVLMTrainee(model, layout.image_token_id)
    with torch.no_grad():
        ours = trainee.patches(pixels)
        values = (pixels.float() / 127.5 - 1).permute(0, 1, 4, 2, 3)
        theirs = model.model.get_image_features(values).pooler_output
    model.model.text_model.set_attn_implementation("sdpa")
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, atol=1e-5)


def test_batches_hold_pictures_of_several_sizes(layout):
    batches = SceneBatches(layout, SmolVLMRecipe().curricula(), 2, 160, 0, 12, 0)
    shapes = {batch["pixels"].shape[1] for batch in batches}
    assert shapes == {3, 5}
    batch = batches.batch(0)
    assert (batch["prefix"] == layout.image_token_id).sum() == batch["patch_word"].shape[1]


def test_the_model_starts_from_tiny_llava_and_fits(model, tokenizer):
    assert sum(parameter.numel() for parameter in model.parameters()) * 2 < 10 * MIB
    assert model.model.text_model.embed_tokens.num_embeddings == len(tokenizer)
    attention = model.model.text_model.layers[0].self_attn
    assert attention.num_key_value_groups == 2


def test_pictures_of_another_size_keep_their_things_apart():
    for size in SIZES:
        for index in range(12):
            scene, question = EmojiScenes("train", picture=size).scene(index)
            picture, owner = render(scene)
            assert picture.size == owner.shape[::-1] == size
            assert question.answer
            for thing in scene.things:
                assert 0 <= thing.x - thing.size / 2 <= thing.x + thing.size / 2 <= size[0]
                assert thing.cell[0] in range(3)
                assert thing.cell[1] in range(3)
    assert isinstance(render(scene)[0], Image.Image)
    assert SIZES[0] == SQUARE


@pytest.mark.slow
def test_training_goes_on(tmp_path, layout, model):
    recipe = SmolVLMRecipe(dense_steps=1, counting_step=1, ends=(2,), batch_size=2)
    trainee = SmolVLMTrainee(model, layout.image_token_id)
    before = model.model.text_model.layers[0].self_attn.k_proj.weight.clone()
    threads = torch.get_num_threads()
    train(tmp_path, trainee, layout, recipe, save_every=1, threads=1)
    torch.set_num_threads(threads)
    assert not torch.equal(before, model.model.text_model.layers[0].self_attn.k_proj.weight)
    assert torch.load(tmp_path / "training.pt", weights_only=True)["step"] == 2
