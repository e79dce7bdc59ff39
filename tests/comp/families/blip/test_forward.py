"""BLIP's parts, whole, masked and with tokens dropped, against transformers and against brute force."""

import pytest
import torch
from transformers import BlipTextConfig, BlipVisionConfig, BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from comp.checkpoints.shapes import cross_key
from comp.families.blip.nlvr import BlipForNlvr2, BlipNlvrConfig
from comp.families.blip.text_forward import Memory, branches_of, read, see
from comp.families.encoder.forward import EncoderOptions
from comp.masks import Masks
from comp.plan import keep_count
from comp.tokens.drop_rules import RatioRule
from tests.comp.towers import Observed, shaken

WIDTH, HEADS, LAYERS, FFN = 32, 4, 3, 40
SPAN = WIDTH // HEADS
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
}


@pytest.fixture(scope="module")
def vision():
    return shaken(BlipVisionModel(BlipVisionConfig(image_size=56, patch_size=14, **SIZES)), 0)


@pytest.fixture(scope="module")
def text_config():
    return BlipTextConfig(
        vocab_size=50, max_position_embeddings=12, encoder_hidden_size=WIDTH, **SIZES
    )


@pytest.fixture(scope="module")
def text(text_config):
    return shaken(BlipTextModel(text_config, add_pooling_layer=False), 1)


@pytest.fixture(scope="module")
def twins(text_config):
    config = BlipNlvrConfig(
        vision_config=BlipVisionConfig(image_size=56, patch_size=14, **SIZES),
        text_config=text_config,
        merge_from_layer=1,
    )
    return shaken(BlipForNlvr2(config), 2).text_encoder


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def texts():
    """Three texts of 9, 6 and 3 tokens, padded."""
    ids = torch.randint(1, 50, (3, 9), generator=torch.Generator().manual_seed(4))
    mask = (torch.arange(9)[None] < torch.tensor([[9], [6], [3]])).long()
    return ids * mask, mask


@pytest.fixture(scope="module")
def memories():
    """Two images, the second with another number of tokens."""
    generator = torch.Generator().manual_seed(5)
    first, second = torch.randn(2, 3, 7, WIDTH, generator=generator)
    alive = (torch.arange(7)[None] < torch.tensor([[7], [4], [1]])).float()
    return Memory.of_image(first), Memory(second, alive)


@torch.no_grad()
def test_the_whole_vision_tower_equals_transformers(vision, pixels):
    expected = vision(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(see(vision, pixels, EncoderOptions()).states, expected, **CLOSE)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("crosses", [False, True])
@torch.no_grad()
def test_whole_text_models_equal_transformers(text, texts, memories, causal, crosses):
    ids, mask = texts
    memory, _ = memories
    expected = text(
        input_ids=ids,
        attention_mask=mask,
        encoder_hidden_states=memory.states if crosses else None,
        is_decoder=causal,
    ).last_hidden_state
    result = read(text, ids, mask, [memory] if crosses else [], EncoderOptions(), causal=causal)
    there = mask > 0
    torch.testing.assert_close(result.tokens.states[there], expected[there], **CLOSE)


@torch.no_grad()
def test_padding_of_a_memory_changes_nothing(text, texts, memories):
    """transformers 5.23 loses this mask, so the comparison is one row at a time."""
    ids, mask = texts
    _, memory = memories
    result = read(text, ids, mask, [memory], EncoderOptions(), causal=True).tokens.states
    for row, length in enumerate((9, 6, 3)):
        there = memory.states[row : row + 1, memory.alive[row] > 0]
        alone = text(
            input_ids=ids[row : row + 1, :length], encoder_hidden_states=there, is_decoder=True
        ).last_hidden_state
        torch.testing.assert_close(result[row, :length], alone[0], **CLOSE)


@torch.no_grad()
def test_two_images_equal_the_model_class(twins, texts, memories):
    ids, mask = texts
    images = torch.stack([memories[0].states, memories[1].states], 1)
    expected = twins(ids, mask, images)
    both = [Memory.of_image(images[:, number]) for number in (0, 1)]
    result = read(twins, ids, mask, both, EncoderOptions()).tokens.states
    there = mask > 0
    torch.testing.assert_close(result[there], expected[there], **CLOSE)


class ByHand:
    """A text at a time, a head at a time, with plain lists; ``off`` holds heads that are masked."""

    def __init__(self, text, ratio, off, causal=False):
        self.text, self.ratio, self.off, self.causal = text, ratio, off, causal

    def heads(self, module, states, memory, key, causal=False):
        """Return the outputs of the heads, and the attention of the kept ones."""
        outputs, weights = [], []
        for head in range(HEADS):
            span = slice(head * SPAN, (head + 1) * SPAN)
            query, keys, value = (
                module.query(states)[:, span],
                module.key(memory)[:, span],
                module.value(memory)[:, span],
            )
            scores = query @ keys.T / SPAN**0.5
            if causal:
                scores = scores.masked_fill(~torch.ones_like(scores).tril().bool(), -torch.inf)
            attention = scores.softmax(-1)
            there = float((key, head) not in self.off)
            outputs.append(attention @ value * there)
            weights.append(attention * there)
        return torch.cat(outputs, -1), torch.stack(weights)

    def __call__(self, ids, memories):
        """States ``[N, D]`` of the tokens left, and their places."""
        states = self.text.embeddings(input_ids=ids[None])[0]
        places = list(range(len(ids)))
        for number, layer in enumerate(self.text.encoder.layer):
            mixed, attention = self.heads(
                layer.attention.self, states, states, ("language", number), self.causal
            )
            output = layer.attention.output
            states = output.LayerNorm(output.dense(mixed) + states)
            if self.ratio < 1 and number + 1 < LAYERS:
                importance = attention.amax(0).mean(0)
                importance[0] = 9.0
                count = keep_count(len(places), self.ratio)
                best = sorted(importance.argsort(descending=True)[:count].tolist())
                states, places = states[best], [places[i] for i in best]
            branches = branches_of(layer)
            result = [
                self.heads(branch, states, memory, ("cross", number * len(branches) + side))[0]
                for side, (branch, memory) in enumerate(zip(branches, memories, strict=False))
            ]
            if result:
                output = layer.crossattention.output
                states = (
                    output(*result, states)
                    if len(result) > 1
                    else output.LayerNorm(output.dense(result[0]) + states)
                )
            output = layer.output
            states = output.LayerNorm(output.dense(layer.intermediate(states)) + states)
        return states, places


OFF = {
    (("language", 0), 1),
    (("language", 2), 3),
    (("cross", 0), 0),
    (("cross", 2), 2),
    (("cross", 5), 1),
}


def masks_without(off):
    """Masks of three language blocks and up to six branches of cross-attention."""
    blocks = [("language", n) for n in range(LAYERS)] + [("cross", n) for n in range(2 * LAYERS)]
    masks = Masks(
        {key: torch.ones(HEADS) for key in blocks},
        {("language", n): torch.ones(FFN) for n in range(LAYERS)},
    )
    for key, head in off:
        masks.heads[key][head] = 0
    return masks


@pytest.mark.parametrize("ratio", [1.0, 0.7, 0.25])
@pytest.mark.parametrize("which", ["encoder", "decoder", "twins", "alone"])
@torch.no_grad()
def test_dropped_tokens_and_masked_heads_by_hand(text, twins, texts, memories, which, ratio):
    model = twins if which == "twins" else text
    seen = {"alone": [], "twins": list(memories)}.get(which, [memories[1]])
    causal = which == "decoder"
    rules = {place: RatioRule(1.0, ratio) for place in range(1, LAYERS)} if ratio < 1 else {}
    ids, mask = texts
    options = EncoderOptions(masks_without(OFF), rules)
    result = read(model, ids, mask, seen, options, causal=causal).tokens
    hand = ByHand(model, ratio, OFF, causal)
    for row, length in enumerate((9, 6, 3)):
        there = [memory.states[row][memory.alive[row] > 0] for memory in seen]
        states, places = hand(ids[row, :length], there)
        alive = result.alive[row] > 0
        assert result.index[row][alive].tolist() == places
        torch.testing.assert_close(result.states[row][alive], states, **CLOSE)


@torch.no_grad()
def test_masked_channels_contribute_nothing(text, texts, memories):
    ids, mask = texts
    masks = masks_without(())
    for number in range(LAYERS):
        masks.channels["language", number][::3] = 0
    result = read(text, ids, mask, memories[:1], EncoderOptions(masks)).tokens.states
    saved = [layer.output.dense.weight.clone() for layer in text.encoder.layer]
    for layer in text.encoder.layer:
        layer.output.dense.weight[:, ::3] = 0
    expected = read(text, ids, mask, memories[:1], EncoderOptions()).tokens.states
    for layer, weight in zip(text.encoder.layer, saved, strict=True):
        layer.output.dense.weight.copy_(weight)
    torch.testing.assert_close(result, expected, **CLOSE)


@torch.no_grad()
def test_block_numbers_of_a_decoder_continue_the_encoders(text, texts, memories):
    """A decoder after an encoder of four blocks has its masks from index four on."""
    ids, mask = texts
    early = masks_without({(("language", 0), 1), (("cross", 2), 2)})
    late = Masks(
        {(part, number + 4): value for (part, number), value in early.heads.items()},
        {(part, number + 4): value for (part, number), value in early.channels.items()},
    )
    plain = read(text, ids, mask, memories[:1], EncoderOptions(early)).tokens.states
    moved = read(text, ids, mask, memories[:1], EncoderOptions(late), first=4).tokens.states
    assert torch.equal(plain, moved)


def test_cross_attention_keys_by_hand():
    assert cross_key(3, 0, 1) == ("cross", 3)
    assert [cross_key(3, side, 2) for side in (0, 1)] == [("cross", 6), ("cross", 7)]


@torch.no_grad()
def test_observers_see_every_output_projection(twins, texts, memories):
    """Heads with their block's importance, channels with the next block's, of the tokens there."""
    observed = Observed()
    ids, mask = texts
    options = EncoderOptions(rules={1: RatioRule(1.0, 0.5)})
    read(twins, ids, mask, memories, options, observed)
    left = keep_count(9, 0.5)
    assert observed.seen == [
        ("heads", ("language", 0), 9, 9),
        ("heads", ("cross", 0), left, left),
        ("heads", ("cross", 1), left, left),
        ("heads", ("language", 1), left, left),
        ("channels", ("language", 0), left, left),
        ("heads", ("cross", 2), left, left),
        ("heads", ("cross", 3), left, left),
        ("heads", ("language", 2), left, left),
        ("channels", ("language", 1), left, left),
        ("heads", ("cross", 4), left, left),
        ("heads", ("cross", 5), left, left),
        ("channels", ("language", 2), left, left),
    ]
