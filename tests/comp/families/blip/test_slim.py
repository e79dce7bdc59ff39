"""Slim BLIPs of the four tasks equal the masked model: saved, loaded, generating."""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForImageTextToText, AutoModelForVisualQuestionAnswering

from comp.adapter import Forwarding
from comp.errors import CompExportError
from comp.families.blip.forward import encoded_by, memories_of, said_by, seen_by
from comp.families.blip.text_forward import Memory
from comp.families.loading import load_adapter
from comp.masks import Masks
from comp.tokens.drop_rules import rules_from_plan
from tests.comp.small_blip import (
    TASKS,
    examples_of,
    random_blip,
    random_plan,
)

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def adapters():
    return {task: random_blip(task) for task in TASKS}


@pytest.fixture(scope="module")
def batches(adapters):
    return {task: adapters[task].collate(examples_of(task, 5)) for task in TASKS}


def outputs(adapter, batch, forwarding):
    """Return all outputs of the model for a batch, and the kept tokens."""
    seen = seen_by(adapter.model, batch.pixel_values, forwarding)
    ids, mask = batch.input_ids, batch.attention_mask
    memories = memories_of(seen, adapter.images)
    result = [seen.states]
    kept = [seen.encoded.tokens.index]
    if adapter.encoder_blocks:
        read = encoded_by(adapter.model, ids, mask, memories, forwarding)
        result.append(read.tokens.states * (read.tokens.alive > 0)[..., None])
        kept.append(read.tokens.index * (read.tokens.alive > 0))
        memories = [Memory.of_text(read)]
    if adapter.task == "question":
        ids, mask = batch.answer_ids, batch.answer_mask
    if adapter.task in ("question", "caption"):
        result.append(said_by(adapter.model, ids, mask, memories[0], forwarding))
    return result, kept


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("seed", range(2))
@torch.no_grad()
def test_cut_equals_masked(adapters, batches, task, seed):
    adapter, batch = adapters[task], batches[task]
    plan = random_plan(adapter, seed)
    rules = rules_from_plan(plan.drops)
    masked = Forwarding(Masks.from_plan(plan.blocks), rules)
    slim = adapter.cut(plan)
    result, kept = outputs(adapter, batch, masked)
    again, same = outputs(slim, batch, Forwarding(rules=rules))
    for one, two in zip(result, again, strict=True):
        torch.testing.assert_close(two, one, **CLOSE)
    assert all(map(torch.equal, kept, same))
    first, second = adapter.score(batch, masked), slim.score(batch, Forwarding(rules=rules))
    assert float(first.loss) == pytest.approx(float(second.loss), abs=1e-5)
    assert torch.equal(first.correct, second.correct)
    assert first.shares == second.shares
    assert set(first.shares) == set(adapter.drop_places)
    sizes = [sum(p.numel() for p in each.model.parameters()) for each in (adapter, slim)]
    assert sizes[1] < sizes[0]
    assert [len(block.kept_heads) for block in plan.blocks] == [
        block.num_attention_heads for block in slim.blocks
    ]
    assert [block.intermediate_size for block in slim.blocks] == [
        len(block.kept_channels) for block in plan.blocks
    ]


@pytest.mark.parametrize("task", TASKS)
@torch.no_grad()
def test_a_slim_checkpoint_survives_save_and_load(adapters, batches, tmp_path, task):
    adapter, batch = adapters[task], batches[task]
    plan = random_plan(adapter, 3)
    slim = adapter.cut(plan)
    slim.save(tmp_path)
    loaded = load_adapter(tmp_path)
    assert type(loaded) is type(adapter)
    assert type(loaded.model) is type(slim.model)
    assert loaded.model.drops == plan.drops
    state = loaded.model.state_dict()
    assert state.keys() == slim.model.state_dict().keys()
    for name, tensor in slim.model.state_dict().items():
        assert torch.equal(state[name], tensor), name
    again = loaded.collate(examples_of(task, 5))
    for one, two in zip(vars(batch).values(), vars(again).values(), strict=True):
        assert torch.equal(one, two)
    forwarding = loaded.model.forwarding
    assert float(loaded.score(batch, forwarding).loss) == float(slim.score(batch, forwarding).loss)


def greedy(adapter, batch, row, forwarding):
    """Generate the answer of a single row, token by token, through the masked model."""
    seen = seen_by(adapter.model, batch.pixel_values[row : row + 1], forwarding)
    memory = memories_of(seen, 1)
    config = adapter.model.config.text_config
    if adapter.task == "question":
        length = int(batch.attention_mask[row].sum())
        ids = batch.input_ids[row : row + 1, :length]
        memory = [Memory.of_text(encoded_by(adapter.model, ids, None, memory, forwarding))]
    sequence = torch.tensor([[config.bos_token_id]])
    while sequence.shape[1] < 9 and int(sequence[0, -1]) != config.sep_token_id:
        logits = said_by(adapter.model, sequence, torch.ones_like(sequence), memory[0], forwarding)
        sequence = torch.cat([sequence, logits[:, -1:].argmax(-1)], 1)
    return sequence[0].tolist()


@pytest.mark.parametrize("task", ["question", "caption"])
@torch.no_grad()
def test_slim_models_generate_as_masked_ones(adapters, batches, tmp_path, task):
    """Through transformers' own generation and cache, in a batch whose questions are padded."""
    adapter, batch = adapters[task], batches[task]
    plan = random_plan(adapter, 5)
    adapter.cut(plan).save(tmp_path)
    auto = (
        AutoModelForVisualQuestionAnswering if task == "question" else AutoModelForImageTextToText
    )
    slim = auto.from_pretrained(tmp_path).eval()
    inputs = {"pixel_values": batch.pixel_values}
    if task == "question":
        assert len(set(batch.attention_mask.sum(1).tolist())) > 1
        inputs |= {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    masked = Forwarding(Masks.from_plan(plan.blocks), rules_from_plan(plan.drops))
    config = slim.config.text_config
    for beams in (1, 3):
        sequence = slim.generate(**inputs, max_new_tokens=8, num_beams=beams, do_sample=False)
        if beams > 1:
            continue
        for row in range(5):
            alone = greedy(adapter, batch, row, masked)
            assert sequence[row].tolist()[: len(alone)] == alone
            assert set(sequence[row].tolist()[len(alone) :]) <= {config.pad_token_id}


@torch.no_grad()
def test_forward_passes_of_slim_models(adapters, batches):
    """Outputs equal those of transformers' classes: logits, losses, matching scores, products."""
    for task in TASKS:
        adapter, batch = adapters[task], batches[task]
        plan = random_plan(adapter, 7)
        slim = adapter.cut(plan).model
        masked = Forwarding(Masks.from_plan(plan.blocks), rules_from_plan(plan.drops))
        result, _ = outputs(adapter, batch, masked)
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        inputs["pixel_values"] = batch.pixel_values
        if task == "caption":
            there = batch.attention_mask > 0
            torch.testing.assert_close(slim(**inputs).logits[there], result[-1][there], **CLOSE)
        elif task == "question":
            labels = batch.answer_ids[:, :3]
            expected = F.cross_entropy(result[-1][:, :2].flatten(0, 1), labels[:, 1:].flatten())
            output = slim(**inputs, labels=labels)
            assert float(output.loss) == pytest.approx(float(expected), abs=1e-5)
            with pytest.raises(ValueError, match="call generate"):
                slim(**inputs)
        elif task == "retrieval":
            torch.testing.assert_close(
                slim(**inputs).itm_score, adapter.model.itm_head(result[1][:, 0]), **CLOSE
            )
            products = slim(**inputs, use_itm_head=False).itm_score
            assert products.shape == (5, 5)
            assert float(products.abs().max()) <= 1 + 1e-5
        else:
            pairs = batch.pixel_values.unflatten(0, (5, 2))
            logits = slim(**inputs | {"pixel_values": pairs}).logits
            torch.testing.assert_close(logits, adapter.model.cls_head(result[1][:, 0]), **CLOSE)
            with pytest.raises(CompExportError, match="not two images"):
                slim(**inputs)
