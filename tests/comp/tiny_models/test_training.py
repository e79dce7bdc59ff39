"""Training tiny-llava: contents of batches, packed questions, the schedule, resuming."""

import pytest
import torch
import torch.nn.functional as F
from transformers import LlavaForConditionalGeneration

from comp.tiny_models.picture_layout import WholePicture
from comp.tiny_models.question_training import optimisers
from comp.tiny_models.scene_batches import IGNORE, SceneBatches
from comp.tiny_models.tiny_llava import GRID, PATCH_SIZE, initialise, tiny_llava_config
from comp.tiny_models.tiny_tokenizer import build_tokenizer
from comp.tiny_models.train_tiny_llava import LlavaRecipe, LlavaTrainee, train_tiny_llava

ROWS = 3


def batches(tokenizer, start=0, stop=4):
    recipe = LlavaRecipe(dense_steps=1, easy_steps=1, middle_steps=1)
    layout = WholePicture(tokenizer, GRID, PATCH_SIZE)
    return SceneBatches(layout, recipe.curricula(), ROWS, 160, start, stop, recipe.seed)


@pytest.fixture(autouse=True)
def same_threads():
    """Restore the number of threads, which training changes."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def trainee(tokenizer):
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(tiny_llava_config(tokenizer))
    initialise(model)
    return LlavaTrainee(model, model.config.image_token_id)


def test_batches_are_reproducible(tokenizer):
    ahead = list(batches(tokenizer))[2]
    again = next(iter(batches(tokenizer, 2)))
    assert all(torch.equal(ahead[key].nan_to_num(), again[key].nan_to_num()) for key in ahead)
    other = batches(tokenizer).batch(3)
    assert not torch.equal(ahead["pixels"], other["pixels"])


def test_labels_are_shifted_by_one(tokenizer):
    batch = batches(tokenizer).batch(3)
    ids, labels, segment = (batch[key] for key in ("ids", "labels", "segment"))
    answered = labels != IGNORE
    rows, places = answered.nonzero(as_tuple=True)
    last = places + 1 == segment.shape[1]
    assert torch.equal(ids[rows[~last], places[~last] + 1], labels[rows[~last], places[~last]])
    for row in range(ROWS):
        for number in segment[row].unique().tolist():
            if number >= 0:
                answer = labels[row][(segment[row] == number) & answered[row]]
                assert answer[-1] == tokenizer.eos_token_id
                assert len(answer) >= 2


def test_packed_questions_have_the_loss_of_single_ones(tokenizer, trainee):
    batch = one_row(batches(tokenizer).batch(3))
    with torch.no_grad():
        together = trainee(batch, dense_only=False)["answer"]
        model = trainee.model
        pixels = trainee_pixels(batch)
        features = model.get_image_features(pixel_values=pixels).pooler_output
        features = torch.cat(list(features)).reshape(1, GRID * GRID, -1)
        prefix = model.get_input_embeddings()(torch.tensor(tokenizer("USER:")["input_ids"]))[None]
        losses = []
        language = model.model.language_model
        language.set_attn_implementation("sdpa")
        for number in batch["segment"][0].unique().tolist():
            if number < 0:
                continue
            mine = batch["segment"] == number
            words = model.get_input_embeddings()(batch["ids"][mine])[None]
            states = language(inputs_embeds=torch.cat([prefix, features, words], 1))
            logits = model.lm_head(states.last_hidden_state[0, -int(mine.sum()) :])
            labels = batch["labels"][mine]
            losses.append(
                F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")[
                    labels != IGNORE
                ]
            )
        language.set_attn_implementation("packed_questions")
    assert len(losses) > 3
    assert together.item() == pytest.approx(torch.cat(losses).mean().item(), rel=1e-4)


def one_row(batch):
    return {key: value if key == "prefix" else value[:1] for key, value in batch.items()}


def trainee_pixels(batch):
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    return ((batch["pixels"].float() / 255 - mean) / deviation).permute(0, 3, 1, 2)


def test_every_weight_is_optimised_once(trainee):
    groups = [g for o in optimisers(trainee, LlavaRecipe()) for g in o.param_groups]
    result = [parameter for group in groups for parameter in group["params"]]
    assert len(result) == len({id(p) for p in result}) == len(list(trainee.parameters()))


def test_the_learning_rate_falls_to_zero_at_each_end():
    recipe = LlavaRecipe()
    rates = [recipe.learning_rate_at(step) for step in range(recipe.total_steps)]
    assert max(rates) == recipe.learning_rate
    for end in recipe.ends:
        assert 0 < rates[end - 1] < 1e-5
    for end in recipe.ends[:-1]:
        assert rates[end] > 1e-4
    assert rates[0] < rates[recipe.warmup_steps]
    assert rates[recipe.dense_steps] < 0.02 * rates[recipe.dense_steps - 1]


@pytest.mark.slow
def test_interrupted_training_continues(tmp_path):
    def recipe(*ends):
        return LlavaRecipe(dense_steps=1, easy_steps=1, middle_steps=1, ends=ends, batch_size=2)

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for out in (whole, cut):
        out.mkdir()
    train_tiny_llava(whole, recipe(1, 1), save_every=1, threads=1)
    train_tiny_llava(cut, recipe(1), save_every=1, threads=1)
    train_tiny_llava(cut, recipe(1, 1), save_every=1, threads=1)
    first, second = (
        torch.load(out / "training.pt", weights_only=True)["trainee"] for out in (whole, cut)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (cut / "model" / "model.safetensors").stat().st_size <= 16 * 2**20
