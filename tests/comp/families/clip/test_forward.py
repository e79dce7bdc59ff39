"""CLIP's towers, whole, masked and with tokens dropped, against transformers and against brute force."""

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from comp.families.clip.forward import embed_images, embed_texts, end_of_text
from comp.families.encoder.forward import EncoderOptions
from comp.importance.encoder_rankings import attention_received
from comp.masks import Masks
from comp.plan import keep_count
from comp.tokens.drop_rules import RatioRule
from tests.comp.towers import Observed, shaken

WIDTH, HEADS, LAYERS, FFN, EOS = 32, 4, 3, 40, 49
PATCHES = 16


@pytest.fixture(scope="module")
def model():
    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
    }
    text = CLIPTextConfig(
        vocab_size=50, max_position_embeddings=12, eos_token_id=EOS, bos_token_id=48, **sizes
    )
    vision = CLIPVisionConfig(image_size=56, patch_size=14, **sizes)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    return shaken(CLIPModel(config), 0)


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def texts():
    """Three texts of 9, 6 and 3 tokens, padded."""
    ids = torch.randint(1, 40, (3, 9), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    for row, length in enumerate((9, 6, 3)):
        ids[row, length - 1] = EOS
        ids[row, length:] = 0
        mask[row, length:] = 0
    return ids, mask


def normalised(x):
    return torch.nn.functional.normalize(x, dim=-1)


@torch.no_grad()
def test_whole_towers_equal_transformers(model, pixels, texts):
    seen = embed_images(model, pixels, EncoderOptions()).embeds
    expected = normalised(model.get_image_features(pixel_values=pixels).pooler_output)
    torch.testing.assert_close(seen, expected, atol=1e-5, rtol=1e-5)
    ids, mask = texts
    read = embed_texts(model, ids, mask, EncoderOptions()).embeds
    features = model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
    torch.testing.assert_close(read, normalised(features), atol=1e-5, rtol=1e-5)


def test_the_end_of_text_is_pooled(texts):
    ids, _ = texts
    assert end_of_text(ids, EOS).tolist() == [8, 5, 2]
    assert end_of_text(ids, 2).tolist() == ids.argmax(-1).tolist()


class ByHand:
    """One picture or text at a time, one head at a time, dropping with plain lists."""

    def __init__(self, tower, causal, ratio, heads_off=()):
        self.tower, self.causal, self.ratio, self.heads_off = tower, causal, ratio, heads_off

    def __call__(self, states, stays):
        """``states [N, D]``; returns the states left, their original places and the one that stays."""
        places = list(range(len(states)))
        for number, layer in enumerate(self.tower.encoder.layers):
            attention, normed = layer.self_attn, layer.layer_norm1(states)
            outputs, received = [], torch.zeros(HEADS, len(states), len(states))
            for head in range(HEADS):
                span = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
                query, key, value = (
                    projection(normed)[:, span]
                    for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
                )
                scores = query @ key.T / (WIDTH // HEADS) ** 0.5
                if self.causal:
                    scores = scores.masked_fill(~torch.ones_like(scores).tril().bool(), -torch.inf)
                weights = scores.softmax(-1)
                gone = (number, head) in self.heads_off
                received[head] = torch.zeros_like(weights) if gone else weights
                outputs.append(torch.zeros_like(value) if gone else weights @ value)
            states = states + attention.out_proj(torch.cat(outputs, -1))
            if number + 1 < LAYERS:
                importance = received.amax(0).mean(0)
                importance[places.index(stays)] = 9.0
                count = keep_count(len(places), self.ratio)
                best = sorted(importance.argsort(descending=True)[:count].tolist())
                states, places = states[best], [places[i] for i in best]
            states = states + layer.mlp(layer.layer_norm2(states))
        return states, places


@pytest.mark.parametrize("ratio", [1.0, 0.7, 0.25])
@torch.no_grad()
def test_dropped_tokens_by_hand(model, pixels, texts, ratio):
    off = ((0, 1), (1, 3), (2, 0))
    masks = {
        part: Masks(
            {(part, n): torch.ones(HEADS) for n in range(LAYERS)},
            {(part, n): torch.ones(FFN) for n in range(LAYERS)},
        )
        for part in ("vision", "language")
    }
    for number, head in off:
        for part, mask in masks.items():
            mask.heads[part, number][head] = 0
    rules = {place: RatioRule(ratio, ratio) for place in range(1, LAYERS)}
    result = embed_images(model, pixels, EncoderOptions(masks["vision"], rules))
    tower = model.vision_model
    hand = ByHand(tower, False, ratio, off)
    for row in range(3):
        start = tower.pre_layrnorm(tower.embeddings(pixels[row : row + 1]))[0]
        states, places = hand(start, 0)
        assert result.encoded.tokens.index[row].tolist() == places
        expected = normalised(model.visual_projection(tower.post_layernorm(states[0])))
        torch.testing.assert_close(result.embeds[row], expected, atol=1e-5, rtol=1e-5)
    ids, mask = texts
    read = embed_texts(model, ids, mask, EncoderOptions(masks["language"], rules))
    tower = model.text_model
    hand = ByHand(tower, True, ratio, off)
    for row, length in enumerate((9, 6, 3)):
        start = tower.embeddings(input_ids=ids[row : row + 1, :length])[0]
        states, places = hand(start, length - 1)
        tokens = read.encoded.tokens
        assert tokens.index[row][tokens.alive[row] > 0].tolist() == places
        end = states[places.index(length - 1)]
        expected = normalised(model.text_projection(tower.final_layer_norm(end)))
        torch.testing.assert_close(read.embeds[row], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_masked_channels_contribute_nothing(model, pixels):
    masks = Masks(
        {("vision", n): torch.ones(HEADS) for n in range(LAYERS)},
        {("vision", n): (torch.arange(FFN) % 3 > 0).float() for n in range(LAYERS)},
    )
    result = embed_images(model, pixels, EncoderOptions(masks)).embeds
    saved = {}
    for number, layer in enumerate(model.vision_model.encoder.layers):
        saved[number] = layer.mlp.fc2.weight.clone()
        layer.mlp.fc2.weight[:, ::3] = 0
    expected = normalised(model.get_image_features(pixel_values=pixels).pooler_output)
    for number, layer in enumerate(model.vision_model.encoder.layers):
        layer.mlp.fc2.weight.copy_(saved[number])
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


def test_attention_received_of_a_small_case():
    """Two heads, three tokens of which the last is absent: mean over those that ask."""
    never = -1e9
    scores = torch.tensor([[[0.0, 0.0, never]] * 3, [[2.0, 0.0, never]] * 3])[None]
    alive = torch.tensor([[1.0, 1.0, 0.0]])
    sharp = torch.tensor(2.0).exp() / (1 + torch.tensor(2.0).exp())
    both = attention_received(scores, alive, torch.ones(2), True)
    torch.testing.assert_close(both, torch.tensor([[sharp, 0.5, 0.0]]))
    first = attention_received(scores, alive, torch.tensor([1.0, 0.0]), True)
    torch.testing.assert_close(first, torch.tensor([[0.5, 0.5, 0.0]]))
    flattened = attention_received(scores, alive, torch.tensor([0.0, 1.0]), False)
    torch.testing.assert_close(flattened, torch.tensor([[sharp, 0.5, 0.0]]))


@torch.no_grad()
def test_observers_see_every_output_projection(model, pixels):
    """Heads with their block's importance, channels with the next block's, of the tokens there."""
    observed = Observed()
    rules = {1: RatioRule(0.5, 1.0)}
    embed_images(model, pixels, EncoderOptions(rules=rules), observed)
    left = keep_count(PATCHES + 1, 0.5)
    assert observed.seen == [
        ("heads", ("vision", 0), PATCHES + 1, PATCHES + 1),
        ("heads", ("vision", 1), left, left),
        ("channels", ("vision", 0), left, left),
        ("heads", ("vision", 2), left, left),
        ("channels", ("vision", 1), left, left),
        ("channels", ("vision", 2), left, left),
    ]
