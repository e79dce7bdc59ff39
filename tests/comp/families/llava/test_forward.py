"""The reference forward pass against transformers, brute force, and itself in other forms."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration

from comp.adapter import Forwarding
from comp.families.llava.adapter import LlavaAdapter
from comp.families.llava.decoder import DecoderCache, DecoderOptions, rules_by_layer
from comp.families.llava.forward import answer_step, run_llava
from comp.masks import Masks
from comp.plan import BlockPlan, DropPlan, PruningPlan, Workload
from comp.tokens.drop_rules import RatioRule, rules_from_plan
from comp.tokens.state import ANSWER, TEXT, VISION
from tests.comp.small import GROUPS, questions, small_adapter

DROPS = (
    DropPlan(after_layer=1, vision_keep_ratio=0.6, text_keep_ratio=0.7),
    DropPlan(after_layer=3, vision_keep_ratio=0.35, text_keep_ratio=0.5),
)


def some_plan(adapter, seed=0):
    """Return a random plan with other heads and widths in every block."""
    rng = np.random.default_rng(seed)
    blocks = []
    for block in adapter.blocks:
        groups = int(rng.integers(1, block.num_key_value_heads + 1))
        width = int(rng.integers(8, block.intermediate_size + 1))
        blocks.append(
            BlockPlan(
                part=block.part,
                index=block.index,
                num_attention_heads=block.num_attention_heads,
                num_key_value_heads=block.num_key_value_heads,
                intermediate_size=block.intermediate_size,
                kept_key_value_heads=sorted(
                    rng.permutation(block.num_key_value_heads)[:groups].tolist()
                ),
                kept_channels=sorted(rng.permutation(block.intermediate_size)[:width].tolist()),
            )
        )
    return PruningPlan(
        family="llava",
        model="small",
        method="comp",
        rate=0.5,
        workload=Workload(image_tokens=16, text_tokens=12),
        macs_dense=2,
        macs=1,
        blocks=tuple(blocks),
        drops=DROPS,
    )


def masked_logits(adapter, batch, options, masks=None):
    output = run_llava(adapter.model, batch, options, tower_masks=masks)
    return adapter.model.lm_head(output.tokens.states), output


def test_dense_equals_transformers(adapter):
    batch = adapter.collate(questions(5))
    with torch.no_grad():
        ours, _ = masked_logits(adapter, batch, DecoderOptions())
        theirs = adapter.model(
            input_ids=batch.input_ids,
            pixel_values=batch.pixel_values,
            attention_mask=batch.alive.long(),
        ).logits
    alive = batch.alive > 0
    assert torch.allclose(ours[alive], theirs[alive], atol=2e-5)


@pytest.mark.parametrize("seed", range(3))
def test_masked_equals_slim_exactly_in_what_is_kept(adapter, seed):
    plan = some_plan(adapter, seed)
    batch = adapter.collate(questions(4))
    masks = Masks.from_plan(plan.blocks)
    rules = rules_by_layer(rules_from_plan(plan.drops))
    with torch.no_grad():
        masked, one = masked_logits(adapter, batch, DecoderOptions(masks, rules), masks)
        slim = adapter.cut(plan)
        cut, two = masked_logits(slim, batch, DecoderOptions(rules=rules))
    for place in one.kept:
        assert torch.equal(one.kept[place].index, two.kept[place].index)
        assert torch.equal(one.kept[place].alive, two.kept[place].alive)
    alive = one.tokens.alive > 0
    assert torch.allclose(masked[alive], cut[alive], atol=2e-5)


def test_dropping_equals_attention_masks_of_transformers(adapter):
    """Dropping tokens equals hiding them with transformers' masks."""
    batch = adapter.collate(questions(1))
    rules = {2: RatioRule(0.5, 0.5)}
    with torch.no_grad():
        ours, output = masked_logits(adapter, batch, DecoderOptions(rules=rules))
        kept = set(output.kept[2].index[0].tolist())
        language = adapter.model.model.language_model
        features = adapter.model.model.get_image_features(
            batch.pixel_values, vision_feature_layer=-2, vision_feature_select_strategy="default"
        ).pooler_output
        states = language.embed_tokens(batch.input_ids)
        places = batch.input_ids == adapter.model.config.image_token_id
        states = states.masked_scatter(places[..., None], torch.stack(list(features)))
        count = states.shape[1]
        position = torch.arange(count)[None]
        rotary = language.rotary_emb(states, position_ids=position)
        causal = torch.ones(count, count, dtype=torch.bool).tril()
        for number, layer in enumerate(language.layers):
            seen = causal.clone()
            if number >= 2:
                seen[:, [i for i in range(count) if i not in kept]] = False
                seen |= torch.eye(count, dtype=torch.bool)
            mask = torch.where(seen, 0.0, -1e9)[None, None]
            states = layer(states, attention_mask=mask, position_embeddings=rotary)
        theirs = adapter.model.lm_head(language.norm(states))
    assert torch.allclose(ours[0], theirs[0, sorted(kept)], atol=2e-5)


def test_kept_tokens_are_most_attended_by_the_last_prompt_token(adapter):
    """Eq. 6 by brute force on transformers' own attention matrices."""
    batch = adapter.collate(questions(1))
    adapter.model.set_attn_implementation("eager")
    with torch.no_grad():
        _, output = masked_logits(adapter, batch, DecoderOptions(rules={1: RatioRule(0.5, 0.4)}))
        attention = adapter.model(
            input_ids=batch.input_ids,
            pixel_values=batch.pixel_values,
            output_attentions=True,
        ).attentions[0]
    query = int(batch.query[0])
    prompt = range(query + 1)
    # Softmax over the prompt only: the query does not see later tokens.
    received = attention[0, :, query, : query + 1].amax(0)
    kind = batch.kind[0]
    expected = {i for i in range(len(kind)) if kind[i] == ANSWER and batch.alive[0, i]}
    for token_kind, share in ((VISION, 500), (TEXT, 400)):
        candidates = [i for i in prompt if kind[i] == token_kind]
        count = -(-len(candidates) * share // 1000)
        scores = {i: float(received[i]) + (2 if i == query else 0) for i in candidates}
        expected |= set(sorted(candidates, key=lambda i: -scores[i])[:count])
    assert set(output.kept[1].index[0].tolist()) == expected


@pytest.mark.parametrize("drops", [(), DROPS])
def test_decode_steps_equal_teacher_forcing(adapter, drops):
    batch = adapter.collate([q for q in questions(24) if q.kind == "list"][:1])
    options = DecoderOptions(rules=rules_by_layer(rules_from_plan(drops)))
    with torch.no_grad():
        whole, output = masked_logits(adapter, batch, options)
        length = int(batch.query[0]) + 1
        prompt = type(batch)(
            batch.pixel_values,
            batch.input_ids[:, :length],
            batch.kind[:, :length],
            batch.alive[:, :length],
            batch.query,
            batch.labels[:, :length],
        )
        cache = DecoderCache()
        run = run_llava(adapter.model, prompt, options, cache)
        steps = [adapter.model.lm_head(run.tokens.states[:, -1])]
        for token in batch.input_ids[0, length:]:
            steps.append(answer_step(adapter.model, token[None], options, cache))
    answer = [output.tokens.index[0].tolist().index(length - 1 + i) for i in range(len(steps))]
    assert torch.allclose(whole[0, answer], torch.cat(steps), atol=2e-5)


def test_a_finished_stage_equals_the_binary_mask(adapter):
    plan = some_plan(adapter)
    whole, target = Masks.ones(adapter.blocks), Masks.from_plan(plan.blocks)
    batch = adapter.collate(questions(2))
    with torch.no_grad():
        done = adapter.score(batch, Forwarding(whole.towards(target, 1.0)))
        binary = adapter.score(batch, Forwarding(target))
        half = adapter.score(batch, Forwarding(whole.towards(target, 0.5)))
    assert torch.equal(done.loss, binary.loss)
    assert not torch.equal(half.loss, binary.loss)


def test_soft_tokens_fade(adapter):
    batch = adapter.collate(questions(2))

    def loss(softness):
        rule = RatioRule(0.25, 1.0, (0.75, 1.0), softness)
        kept = RatioRule(0.75, 1.0)
        with torch.no_grad():
            return float(
                adapter.score(
                    batch, Forwarding(rules={("language", 1): rule if softness >= 0 else kept})
                ).loss
            )

    # Fully present is the old ratio; almost gone is the new one.
    assert loss(1.0) == pytest.approx(loss(-1.0), abs=1e-5)
    assert loss(1e-7) == pytest.approx(loss(0.0), abs=1e-4)


def test_precomputed_image_features_change_nothing(adapter):
    masks = Masks.from_plan(some_plan(adapter).blocks)
    batch = adapter.collate(questions(2))
    with torch.no_grad():
        seen = adapter.with_features(batch, masks)
        first, second = (adapter.score(b, Forwarding(masks)) for b in (batch, seen))
    assert seen.features is not None
    assert torch.equal(first.loss, second.loss)


class _Importances:
    def __init__(self):
        self.seen = []

    def heads(self, key, mixed, importance):
        self.seen.append(("heads", key, importance))

    def channels(self, key, hidden, importance):
        self.seen.append(("channels", key, importance))


def test_ffn_channels_use_the_next_layers_importance(adapter):
    batch = adapter.collate(questions(3))
    observer = _Importances()
    with torch.no_grad():
        run_llava(
            adapter.model, batch, DecoderOptions(rules={2: RatioRule(0.5, 0.5)}), None, observer
        )
    heads = {
        key[1]: value
        for what, key, value in observer.seen
        if key[0] == "language" and what == "heads"
    }
    ffn = {
        key[1]: value
        for what, key, value in observer.seen
        if key[0] == "language" and what == "channels"
    }
    assert torch.equal(ffn[0], heads[1])
    # Tokens dropped between blocks 1 and 2 get no importance.
    assert ffn[1].shape == heads[1].shape
    assert int((ffn[1] > 0).sum()) == int((heads[2] > 0).sum())
    assert torch.equal(ffn[3], heads[3])
    vision = [what for what, key, _ in observer.seen if key[0] == "vision"]
    assert vision == ["heads", "channels"]  # feature layer -2: one of two tower blocks runs


@pytest.fixture
def slim_directory(adapter, tmp_path):
    slim = adapter.cut(some_plan(adapter))
    slim.save(tmp_path / "slim")
    return tmp_path / "slim", slim


def test_slim_loads_with_the_auto_class_and_generates(slim_directory, adapter):
    directory, slim = slim_directory
    before = adapter.model.state_dict()["model.language_model.layers.0.mlp.up_proj.weight"].clone()
    loaded = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()
    assert type(loaded).__name__ == "CompLlavaForConditionalGeneration"
    examples = questions(3)
    processor = slim.processor
    alone = []
    for example in examples:
        inputs = processor(
            images=example.image, text=slim.collator.prompt(example.question), return_tensors="pt"
        )
        result = loaded.generate(**inputs, max_new_tokens=5, do_sample=False)
        alone.append(result[0, inputs["input_ids"].shape[1] :].tolist())
        assert alone[-1] == own_greedy(slim, example, 5)
    inputs = processor(
        images=[e.image for e in examples],
        text=[slim.collator.prompt(e.question) for e in examples],
        padding=True,
        return_tensors="pt",
    )
    together = loaded.generate(**inputs, max_new_tokens=5, do_sample=False)
    new = together[:, inputs["input_ids"].shape[1] :].tolist()
    # After the end of a row, generate fills with padding.
    for row, single in zip(new, alone, strict=True):
        assert row[: len(single)] == single
    # The dense model is unchanged.
    after = adapter.model.state_dict()["model.language_model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(before, after)
    assert type(adapter.model) is LlavaForConditionalGeneration


def own_greedy(slim, example, steps):
    batch = slim.collate([example])
    length = int(batch.query[0]) + 1
    prompt = type(batch)(
        batch.pixel_values,
        *(getattr(batch, n)[:, :length] for n in ("input_ids", "kind", "alive")),
        batch.query,
        batch.labels[:, :length],
    )
    options, cache, result = slim.model.decoder_options(), DecoderCache(), []
    with torch.no_grad():
        states = run_llava(slim.model, prompt, options, cache).tokens.states
        logits = slim.model.lm_head(states[:, -1])
        for _ in range(steps):
            result.append(int(logits.argmax(-1)))
            if result[-1] == slim.processor.tokenizer.eos_token_id:
                break
            logits = answer_step(slim.model, torch.tensor([result[-1]]), options, cache)
    return result


def test_slim_refuses_labels(slim_directory):
    _, slim = slim_directory
    with pytest.raises(ValueError, match="takes no labels"):
        slim.model(input_ids=torch.tensor([[1]]), labels=torch.tensor([[1]]))


def test_cut_heads_are_physically_removed(adapter):
    plan = some_plan(adapter, 2)
    slim = adapter.cut(plan)
    for block, layer in zip(
        plan.part("language"), slim.model.model.language_model.layers, strict=True
    ):
        groups = len(block.kept_key_value_heads)
        assert layer.self_attn.k_proj.out_features == groups * 8
        assert layer.self_attn.q_proj.out_features == groups * 16
        assert layer.mlp.down_proj.in_features == len(block.kept_channels)
    assert isinstance(slim, LlavaAdapter)
    assert slim.blocks[0].num_key_value_heads == len(plan.blocks[0].kept_key_value_heads)
    assert GROUPS == 2


def test_correct_is_greedy_exact_match(adapter):
    batch = adapter.collate(questions(6))
    with torch.no_grad():
        logits, _ = masked_logits(adapter, batch, DecoderOptions())
        scored = adapter.score(batch, Forwarding())
    for row in range(6):
        answered = batch.labels[row] != -100
        expected = bool((logits[row].argmax(-1)[answered] == batch.labels[row][answered]).all())
        assert bool(scored.correct[row]) == expected


def test_models_with_attention_bias_are_cut():
    adapter = small_adapter(attention_bias=True, mlp_bias=True)
    for parameter in adapter.model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=0.3, std=0.3)
    plan = some_plan(adapter, 1)
    batch = adapter.collate(questions(2))
    masks = Masks.from_plan(plan.blocks)
    with torch.no_grad():
        masked, one = masked_logits(adapter, batch, DecoderOptions(masks), masks)
        cut, _ = masked_logits(adapter.cut(plan), batch, DecoderOptions())
    alive = one.tokens.alive > 0
    assert torch.allclose(masked[alive], cut[alive], atol=5e-5)
