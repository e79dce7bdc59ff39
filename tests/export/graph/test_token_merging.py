"""Every ranking and merge in the graphs of CLIP and BLIP against torch, masked and slim."""

import numpy as np
import onnx
import pytest
import torch

from comp.families.clip.forward import embed_images, embed_texts
from comp.families.clip.slim import clip_options
from comp.families.encoder.forward import EncoderOptions
from comp.masks import Masks
from comp.tokens.dictionary import attach_dictionary
from export.graph.builder import Target
from tests.comp.merging import CLIP_WAYS, WAYS, ways_of
from tests.comp.small_clip import random_clip, random_plan
from tests.export.families.test_clip import Graphs
from tests.export.small_blip import Graphs as BlipGraphs
from tests.export.small_blip import Reference, places, save_blip
from tests.export.small_blip import random_blip as random_blip_model
from tests.export.small_blip import random_plan as random_blip_plan

TASKS = (
    ("question", "onnxruntime"),
    ("question", "standard"),
    ("statement", "standard"),
    ("retrieval", "onnxruntime"),
    ("caption", "standard"),
)
CLOSE = 1e-4


@pytest.fixture(scope="module")
def clips():
    """CLIPs with towers of one width, by whether they have a dictionary."""
    result = {ranked: random_clip(3, image_size=56, positions=20) for ranked in (False, True)}
    torch.manual_seed(5)
    attach_dictionary(result[True].model, ways_of(random_plan(), "aligned", "one").drops)
    return result


@pytest.mark.parametrize(("flavour", "ratio"), [("onnxruntime", 0.7), ("standard", 0.3)])
@pytest.mark.parametrize(("ranking", "merge"), CLIP_WAYS)
@torch.no_grad()
def test_masked_slim_and_graphs_of_a_clip_agree(clips, tmp_path, ranking, merge, flavour, ratio):
    plan = ways_of(random_plan(4, ratio, ratio, image_tokens=17, text_tokens=9), ranking, merge)
    clip = clips[ranking == "aligned"]
    slim = clip.cut(plan)
    slim.save(tmp_path / "model")
    graphs = Graphs(tmp_path / "model", tmp_path / "onnx", Target(flavour))
    masks = Masks.from_plan(plan.blocks)
    for seed, (images, texts, length) in enumerate(((3, 4, 9), (1, 1, 2), (2, 3, 20))):
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.randn(images, 3, 56, 56, generator=generator)
        ids = torch.randint(10, 200, (texts, length), generator=generator)
        ids[:, -1] = clip.model.config.text_config.eos_token_id
        ones = torch.ones_like(ids)
        rules = {part: clip_options(plan.drops, part).rules for part in ("vision", "language")}
        whole = (
            embed_images(clip.model, pixels, EncoderOptions(masks, rules["vision"])),
            embed_texts(clip.model, ids, ones, EncoderOptions(masks, rules["language"])),
        )
        cut = slim.model.embedded_images(pixels), slim.model.embedded_texts(ids)
        feeds = (
            (graphs.vision, {"pixel_values": pixels.numpy()}),
            (graphs.text, {"input_ids": ids.numpy()}),
        )
        for masked, slimmed, (session, feed) in zip(whole, cut, feeds, strict=True):
            embeds, kept = graphs.run(session, feed)
            for expected in (masked, slimmed):
                wanted = places(expected.encoded)
                assert sorted(kept) == sorted(wanted) == [1, 2]
                for layer, place in wanted.items():
                    assert np.array_equal(kept[layer], place)
                assert np.abs(embeds - expected.embeds.numpy()).max() <= CLOSE


def blip_graphs(task, model, plan, folder, target):
    """Graphs of a model that a plan has cut; its dictionary is saved with it."""
    return BlipGraphs(save_blip(task, model, folder / "model", plan), folder / "onnx", target)


def same(result, expected):
    expected = expected.numpy()
    assert result.shape == expected.shape
    assert np.abs(result - expected).max() <= CLOSE * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize(("ranking", "merge"), WAYS)
@pytest.mark.parametrize(("task", "flavour"), TASKS)
def test_masked_torch_and_graphs_of_a_blip_agree(tmp_path, task, ranking, merge, flavour):
    """NLVR's towers are of two widths: its image tokens are projected to the text's, or back."""
    plan = ways_of(random_blip_plan(task, 7, 0.5, 0.6), ranking, merge)
    model = random_blip_model(task, 2)
    attach_dictionary(model, plan.drops)
    graphs = blip_graphs(task, model, plan, tmp_path, Target(flavour))
    torch_ = Reference(task, model, plan)
    generator = torch.Generator().manual_seed(1)
    for count, length in ((2, 7), (1, 1)):
        pixels = torch.randn(2 * count, 3, 56, 56, generator=generator)
        ids = torch.randint(3, 60, (count, length), generator=generator)
        seen = torch_.see(pixels)
        result, kept = graphs.see(pixels)
        same(result["last_hidden_state"], seen.states)
        for layer, place in places(seen.encoded).items():
            assert np.array_equal(kept[layer], place)
        if task == "caption":
            continue
        rows = (
            [seen.states[::2], seen.states[1::2]] if task == "statement" else [seen.states[:count]]
        )
        read = torch_.read(ids, *rows)
        name = {"retrieval": "itm_model"}.get(task, "text_encoder")
        single = len(rows) == 1
        states = {
            f"encoder_hidden_states{'' if single else f'__{number}'}": each
            for number, each in enumerate(rows)
        }
        result, kept = graphs.run(name, input_ids=ids, **states)
        wanted = places(read)
        assert set(wanted) - set(kept) == ({3} if task != "question" else set())
        for layer, place in kept.items():
            assert np.array_equal(place, wanted[layer])
        with torch.no_grad():
            pooled = read.tokens.states[:, 0]
            if task == "question":
                same(result["last_hidden_state"], read.tokens.states)
            elif task == "statement":
                same(result["logits"], model.cls_head(pooled))
            else:
                same(result["logits"], model.itm_head(pooled))


def test_a_graph_without_merges_is_unchanged(clips, tmp_path):
    """Ranked by attention received and dropped, tokens go before the output projection."""
    plan = random_plan(4, 0.5, 0.5)
    clips[False].cut(plan).save(tmp_path / "model")
    graphs = Graphs(tmp_path / "model", tmp_path / "onnx", Target())
    for path in graphs.paths:
        kinds = {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}
        assert "ArgMax" not in kinds
