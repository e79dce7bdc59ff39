"""BLIP for two images: our class on transformers' modules."""

import pytest
import torch
from safetensors.torch import save_file
from transformers import BlipTextConfig, BlipVisionConfig

from comp.families.blip.nlvr import BlipForNlvr2, BlipNlvrConfig, load_original, name_of_original

WIDTH, HEADS, LAYERS, MERGE_FROM = 32, 4, 3, 1


@pytest.fixture(scope="module")
def config():
    return BlipNlvrConfig(
        vision_config=BlipVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=HEADS,
            image_size=28,
            patch_size=14,
            initializer_range=0.3,
        ),
        text_config=BlipTextConfig(
            vocab_size=50,
            hidden_size=WIDTH,
            encoder_hidden_size=WIDTH,
            intermediate_size=48,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            max_position_embeddings=16,
            initializer_range=0.3,
        ),
        merge_from_layer=MERGE_FROM,
    )


@pytest.fixture(scope="module")
def model(config):
    torch.manual_seed(0)
    model = BlipForNlvr2(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(1)
    return {
        "input_ids": torch.randint(4, 50, (3, 7), generator=generator),
        "pixel_values": torch.randn(3, 2, 3, 28, 28, generator=generator),
    }


def attention(module, states, memory):
    """Cross-attention written out, one head after another."""
    query, key, value = module.query(states), module.key(memory), module.value(memory)
    parts = []
    for head in range(HEADS):
        span = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
        scores = query[..., span] @ key[..., span].transpose(-1, -2) / (WIDTH // HEADS) ** 0.5
        parts.append(scores.softmax(-1) @ value[..., span])
    return torch.cat(parts, -1)


@pytest.mark.parametrize("number", range(LAYERS))
@torch.no_grad()
def test_both_images_are_joined_as_in_the_paper(model, number):
    cross = model.text_encoder.encoder.layer[number].crossattention
    states, images = torch.randn(2, 5, WIDTH), torch.randn(2, 2, 9, WIDTH)
    result = cross(states, images)
    first = cross.output.dense0(attention(cross.self0, states, images[:, 0]))
    second = cross.output.dense1(attention(cross.self1, states, images[:, 1]))
    if number < MERGE_FROM:
        assert cross.output.merge_layer is None
        joined = (first + second) / 2
    else:
        joined = cross.output.merge_layer(torch.cat([first, second], -1))
    expected = cross.output.LayerNorm(joined + states)
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_padding_changes_nothing(model, batch):
    plain = model(**batch).logits
    ids = torch.cat([batch["input_ids"], torch.full((3, 4), 9)], 1)
    mask = torch.cat([torch.ones(3, 7), torch.zeros(3, 4)], 1).long()
    padded = model(ids, batch["pixel_values"], mask).logits
    torch.testing.assert_close(padded, plain, atol=1e-5, rtol=1e-5)
    assert plain.shape == (3, 2)


@torch.no_grad()
def test_each_picture_matters(model, batch):
    plain = model(**batch).logits
    for which in (0, 1):
        changed = batch["pixel_values"].clone()
        changed[:, which] += 1
        assert (model(batch["input_ids"], changed).logits - plain).abs().min() > 1e-4


def test_gradients_reach_every_parameter(model, batch):
    loss = model(**batch, labels=torch.tensor([0, 1, 1])).loss
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    model.zero_grad()


@torch.no_grad()
def test_saved_model_loads(model, batch, tmp_path):
    model.save_pretrained(tmp_path)
    again = BlipForNlvr2.from_pretrained(tmp_path).eval()
    assert again.config.merge_from_layer == MERGE_FROM
    assert torch.equal(again(**batch).logits, model(**batch).logits)


ORIGINAL = {  # of the original authors' checkpoint, a tensor of each kind
    "visual_encoder.cls_token": "vision_model.embeddings.class_embedding",
    "visual_encoder.pos_embed": "vision_model.embeddings.position_embedding",
    "visual_encoder.patch_embed.proj.bias": "vision_model.embeddings.patch_embedding.bias",
    "visual_encoder.norm.weight": "vision_model.post_layernorm.weight",
    "visual_encoder.blocks.1.norm1.bias": "vision_model.encoder.layers.1.layer_norm1.bias",
    "visual_encoder.blocks.11.attn.qkv.weight": (
        "vision_model.encoder.layers.11.self_attn.qkv.weight"
    ),
    "visual_encoder.blocks.0.attn.proj.weight": (
        "vision_model.encoder.layers.0.self_attn.projection.weight"
    ),
    "visual_encoder.blocks.0.mlp.fc2.bias": "vision_model.encoder.layers.0.mlp.fc2.bias",
    "text_encoder.encoder.layer.7.crossattention.output.merge_layer.weight": (
        "text_encoder.encoder.layer.7.crossattention.output.merge_layer.weight"
    ),
    "text_encoder.embeddings.position_ids": None,
    "cls_head.2.bias": "cls_head.2.bias",
}


@pytest.mark.parametrize(("original", "ours"), ORIGINAL.items())
def test_original_parameter_names_are_mapped(original, ours):
    assert name_of_original(original) == ours


@torch.no_grad()
def test_a_checkpoint_in_the_original_layout_loads(model, config, batch, tmp_path):
    names = {}
    for ours in model.state_dict():
        theirs = ours
        for old, new in (
            ("vision_model.encoder.layers.", "visual_encoder.blocks."),
            ("vision_model.embeddings.class_embedding", "visual_encoder.cls_token"),
            ("vision_model.embeddings.position_embedding", "visual_encoder.pos_embed"),
            ("vision_model.embeddings.patch_embedding", "visual_encoder.patch_embed.proj"),
            ("vision_model.post_layernorm", "visual_encoder.norm"),
            ("self_attn.qkv", "attn.qkv"),
            ("self_attn.projection", "attn.proj"),
            ("layer_norm", "norm"),
        ):
            theirs = theirs.replace(old, new)
        names[theirs] = ours
    state = {theirs: model.state_dict()[ours].clone() for theirs, ours in names.items()}
    state["text_encoder.embeddings.position_ids"] = torch.arange(16)
    save_file(state, tmp_path / "nlvr.safetensors")
    again = load_original(tmp_path / "nlvr.safetensors", config).eval()
    assert torch.equal(again(**batch).logits, model(**batch).logits)
    from comp.errors import CompExportError

    del state["cls_head.2.bias"]
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(CompExportError, match=r"cls_head\.2\.bias"):
        load_original(tmp_path / "part.safetensors", config)
    with pytest.raises(CompExportError, match="safetensors"):
        load_original(tmp_path / "nlvr.pth", config)
