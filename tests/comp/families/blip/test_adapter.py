"""The adapter of BLIP for its four tasks: scores, counts, and refusals."""

import copy

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from comp.adapter import Forwarding
from comp.checkpoints.encoder_shape import packaged_shape
from comp.data.example import Example, PairExample
from comp.errors import CompExportError
from comp.families.blip.forward import encoded_by, memories_of, said_by, seen_by
from comp.families.blip.retrieval import RANKED, hard_pairs
from comp.families.blip.text_forward import Memory
from comp.flops.encoder import ANSWER_LENGTH, compositions
from comp.importance.parameters import ParameterImportance, cheapest_units
from comp.masks import Masks, StructureCounts
from comp.plan import Workload
from comp.tokens.drop_rules import rules_from_plan
from tests.comp.small_blip import (
    HEADS,
    LAYERS,
    SEEN,
    TASKS,
    examples_of,
    random_blip,
    random_plan,
)

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
NOTHING = StructureCounts({}, {})
LENGTHS = {"question": 14, "caption": 15, "retrieval": 35, "statement": 36}


@pytest.fixture(scope="module")
def adapters():
    return {task: random_blip(task) for task in TASKS}


@pytest.fixture(scope="module")
def batches(adapters):
    return {task: adapters[task].collate(examples_of(task, 5)) for task in TASKS}


@torch.no_grad()
def test_losses_equal_transformers(adapters, batches):
    """Compare whole models with the loss of each class on the same batch."""
    adapter, batch = adapters["caption"], batches["caption"]
    ids = batch.input_ids.clone()
    ids[:, 0] = adapter.model.config.text_config.bos_token_id
    labels = ids.masked_fill(batch.attention_mask == 0, -100)
    expected = adapter.model(pixel_values=batch.pixel_values, input_ids=ids, labels=labels)
    scored = adapter.score(batch, Forwarding())
    assert float(scored.loss) == pytest.approx(float(expected.loss), abs=1e-5)
    right = expected.logits[:, :-1].argmax(-1) == labels[:, 1:]
    assert torch.equal(scored.correct, right[labels[:, 1:] != -100])

    adapter, batch = adapters["statement"], batches["statement"]
    pairs = batch.pixel_values.unflatten(0, (5, 2))
    expected = adapter.model(batch.input_ids, pairs, batch.attention_mask, batch.labels)
    scored = adapter.score(batch, Forwarding())
    assert float(scored.loss) == pytest.approx(float(expected.loss), abs=1e-5)
    assert torch.equal(scored.correct, expected.logits.argmax(-1) == batch.labels)

    adapter = adapters["question"]
    for example in examples_of("question", 3):  # one at a time: transformers loses padding
        batch = adapter.collate([example])
        ids = batch.answer_ids.clone()
        ids[:, 0] = adapter.model.config.text_config.bos_token_id
        expected = adapter.model(
            input_ids=batch.input_ids, pixel_values=batch.pixel_values, labels=ids
        )
        scored = adapter.score(batch, Forwarding())
        assert float(scored.loss) == pytest.approx(float(expected.loss), abs=1e-5)
        with torch.no_grad():
            generated = adapter.model.generate(
                batch.input_ids, batch.pixel_values, max_new_tokens=20
            )
        wanted = batch.answer_ids[0, 1:].tolist()
        assert bool(scored.correct) == (generated[0, 1 : len(wanted) + 1].tolist() == wanted)


@torch.no_grad()
def test_retrieval_by_hand(adapters, batches):
    adapter, batch = adapters["retrieval"], batches["retrieval"]
    model = adapter.model

    def matching(text, image):
        length = int(batch.attention_mask[text].sum())
        output = model(batch.input_ids[text : text + 1, :length], batch.pixel_values[[image]])
        return output.itm_score[0]

    products = torch.stack(
        [
            torch.cat(
                [
                    model(
                        batch.input_ids[t : t + 1, : int(batch.attention_mask[t].sum())],
                        batch.pixel_values[[i]],
                        use_itm_head=False,
                    ).itm_score[0]
                    for t in range(5)
                ]
            )
            for i in range(5)
        ]
    )
    scores = products * torch.tensor(model.config.logit_scale_init_value).exp()
    own = torch.arange(5)
    loss = (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2
    off = products - 9 * torch.eye(5)
    pairs = [(n, n) for n in range(5)]
    pairs += [(int(off[n].argmax()), n) for n in range(5)]
    pairs += [(n, int(off[:, n].argmax())) for n in range(5)]
    label = torch.tensor([1] * 5 + [0] * 10)
    loss += F.cross_entropy(torch.stack([matching(*pair) for pair in pairs]), label)
    scored = adapter.score(batch, Forwarding())
    assert float(scored.loss) == pytest.approx(float(loss), abs=1e-4)
    final = products + torch.tensor([[matching(t, i)[1] for t in range(5)] for i in range(5)])
    assert RANKED > 5  # so that all candidates are matched
    expected = torch.cat([final.argmax(1) == own, final.argmax(0) == own])
    assert torch.equal(scored.correct, expected)


def test_hard_negative_pairs_by_hand():
    products = torch.tensor([[0.9, 0.1, 0.3], [0.8, 0.2, 0.1], [0.0, 0.7, 0.6]])
    texts, images, label = hard_pairs(products)
    assert texts.tolist() == [0, 1, 2, 2, 0, 1, 0, 1, 2]
    assert images.tolist() == [0, 1, 2, 0, 1, 2, 1, 2, 0]
    assert label.tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0]
    texts, images, label = hard_pairs(products[:1, :1])
    assert texts.tolist() == images.tolist() == [0]
    assert label.tolist() == [1]


@torch.no_grad()
def test_only_the_top_candidates_are_matched(adapters):
    """Eight of twelve candidates are matched; a pair with a low contrast score cannot win."""
    adapter = adapters["retrieval"]
    batch = adapter.collate(examples_of("retrieval", RANKED + 4))
    scored = adapter.score(batch, Forwarding())
    seen = seen_by(adapter.model, batch.pixel_values, Forwarding())
    alone = encoded_by(adapter.model, batch.input_ids, batch.attention_mask, [], Forwarding())
    images = F.normalize(adapter.model.vision_proj(seen.states[:, 0]), dim=-1)
    texts = F.normalize(adapter.model.text_proj(alone.tokens.states[:, 0]), dim=-1)
    products = images @ texts.T
    count = len(products)
    matched = torch.stack(
        [
            adapter.model.itm_head(
                encoded_by(
                    adapter.model,
                    batch.input_ids[[t] * count],
                    batch.attention_mask[[t] * count],
                    [Memory.of_image(seen.states)],
                    Forwarding(),
                ).tokens.states[:, 0]
            )[:, 1]
            for t in range(count)
        ],
        1,
    )
    expected = []
    for side, scores in ((matched, products), (matched.T, products.T)):
        last = scores.topk(RANKED, 1).values[:, -1:]
        final = torch.where(scores >= last, side + scores, -torch.inf)
        expected.append(final.argmax(1) == torch.arange(count))
    assert torch.equal(scored.correct, torch.cat(expected))


class Counting:
    """Count the multiply-accumulates of a model by hooks, with the counter's rules written out."""

    def __init__(self, model):
        self.macs, self.sizes = 0, {}
        for name, module in model.named_modules():
            module.register_forward_hook(self.hook(name))

    def hook(self, name):
        def count(module, _, output):
            if isinstance(module, torch.nn.Linear):
                self.macs += output.numel() * module.in_features
                owner, _, leaf = name.rpartition(".")
                rows, width = output.shape[-2:] if output.ndim > 2 else (1, output.shape[-1])
                self.sizes[owner, leaf] = rows
                if leaf == "qkv":
                    self.macs += output.shape[0] * 2 * rows * rows * width // 3
                if leaf == "value":  # behind query and key
                    self.macs += 2 * self.sizes[owner, "query"] * rows * width
            elif isinstance(module, torch.nn.LayerNorm):
                self.macs += 5 * output.numel()
            elif isinstance(module, torch.nn.Conv2d):
                self.macs += output.numel() * module.weight[0].numel()

        return count


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("ratios", [(1.0, 1.0), (0.6, 0.7)])
@torch.no_grad()
def test_macs_equal_a_count_by_hooks(adapters, task, ratios):
    adapter = adapters[task]
    plan = random_plan(adapter, 11, *ratios)
    batch = adapter.collate(examples_of(task, 1))
    slim = adapter.cut(plan)
    forwarding = Forwarding(rules=rules_from_plan(plan.drops))
    on = adapter.workload([batch])
    counting = Counting(slim.model)
    seen = seen_by(slim.model, batch.pixel_values, forwarding)
    memories = memories_of(seen, adapter.images)
    ids, mask = batch.input_ids, batch.attention_mask
    if task == "retrieval":
        encoded_by(slim.model, ids, mask, [], forwarding)
    if task != "caption":
        read = encoded_by(slim.model, ids, mask, memories, forwarding)
        memories = [Memory.of_text(read)]
    if task == "statement":
        slim.model.cls_head(read.tokens.states[:, 0])
    if task == "question":
        ids = ids[:, :1].repeat(1, ANSWER_LENGTH)
    if task in ("question", "caption"):
        said_by(slim.model, ids, torch.ones_like(ids), memories[0], forwarding)
    counts = Masks.from_plan(plan.blocks).counts()
    shares = {d.place: (d.vision_keep_ratio, d.text_keep_ratio) for d in plan.drops}
    assert adapter.macs(counts, shares, on) == counting.macs
    assert on.text_tokens == int(batch.attention_mask.sum())
    assert on.image_tokens == SEEN * adapter.images
    slim_counts = Masks.ones(slim.blocks).counts()
    assert slim.macs(slim_counts, shares, on) == counting.macs


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("question", "blip-vqa"),
        ("caption", "blip-caption"),
        ("retrieval", "blip-retrieval"),
        ("statement", "blip-nlvr"),
    ],
)
def test_full_sizes_are_counted_as_published(adapters, task, name):
    """MACs of the dense model at the usual text length equal the first composition, one request."""
    adapter = copy.copy(adapters[task])
    adapter.shape = shape = packaged_shape(name)
    if task != "caption":
        adapter.encoder_blocks = len(shape.text.blocks)
    on = Workload(image_tokens=shape.vision.tokens * adapter.images, text_tokens=LENGTHS[task])
    served = compositions(shape)[0]
    assert adapter.macs(NOTHING, {}, on) == served.macs
    fewer = adapter.macs(
        StructureCounts({("cross", 5): shape.text.blocks[0].heads - 1}, {}), {}, on
    )
    text, image = LENGTHS[task], shape.vision.tokens
    width = shape.text.hidden_size
    dim = shape.text.head_dim
    assert served.macs - fewer == dim * 2 * (text * (width + image) + image * width)


def test_cross_blocks_have_scores_and_no_channels(adapters, batches):
    adapter, batch = adapters["statement"], batches["statement"]
    observer = ParameterImportance({"cross", "language"}, has_cls=adapter.has_cls)
    with torch.no_grad():
        adapter.score(batch, Forwarding(), observer)
    scores = observer.scores(adapter)
    crosses = [("cross", number) for number in range(2 * LAYERS)]
    assert [key for key in scores.heads if key[0] == "cross"] == crosses
    assert all(scores.heads[key].shape == (HEADS,) for key in crosses)
    assert {key[0] for key in scores.channels} == {"language"}
    units = cheapest_units(scores, scores.scales(), Masks.ones(adapter.blocks), adapter.blocks, 16)
    crossed = [unit for unit in units if unit[2][0] == "cross"]
    assert len(crossed) == 2 * LAYERS * (HEADS - 1)
    # Eq. 4 by hand of one head of the second image's branch in the second layer, whose tokens are few.
    layer = adapter.model.text_encoder.encoder.layer[1]
    seen = {}
    layer.crossattention.output.dense1.register_forward_hook(
        lambda module, inputs, _: seen.update(mixed=inputs[0])
    )
    recorded = []

    class Spy:
        def heads(self, key, mixed, importance):
            if key == ("cross", 3):
                recorded.append(importance)

        def channels(self, key, hidden, importance): ...

    with torch.no_grad():
        adapter.score(batch, Forwarding(), Spy())
    weight = recorded[0].clone()
    weight[:, 1:] /= weight[:, 1:].sum(1, keepdim=True)
    weight[:, 0] = 1  # [CLS]
    norms = (weight[..., None] * seen["mixed"] ** 2).sum(1).sqrt().mean(0)
    expected = norms * layer.crossattention.output.dense1.weight.abs().mean(0)
    torch.testing.assert_close(
        scores.heads["cross", 3], expected.view(HEADS, -1).mean(1).detach(), **CLOSE
    )


def test_position_of_cls_by_part(adapters):
    """In towers and text encoders, not in decoders."""
    expected = {"question": (LAYERS, LAYERS), "caption": (0, 0), "retrieval": (LAYERS, LAYERS)}
    expected |= {"statement": (LAYERS, 2 * LAYERS)}
    for task, (language, cross) in expected.items():
        with_cls = [
            block.key for block in adapters[task].blocks if adapters[task].has_cls(block.key)
        ]
        counts = [sum(part == of for of, _ in with_cls) for part in ("vision", "language", "cross")]
        assert counts == [LAYERS, language, cross]


def test_places_where_tokens_can_be_dropped(adapters):
    for task, last in (("question", LAYERS), ("retrieval", LAYERS - 1), ("statement", LAYERS - 1)):
        text = [layer for part, layer in adapters[task].drop_places if part == "language"]
        assert text == list(range(1, last + 1))
    assert {part for part, _ in adapters["caption"].drop_places} == {"vision"}
    for adapter in adapters.values():
        vision = [layer for part, layer in adapter.drop_places if part == "vision"]
        assert vision == list(range(1, LAYERS + 1))
    assert "language_tokens" not in adapters["caption"].default_modes


IMAGE = Image.new("RGB", (168, 168))
LONG = " ".join(["fox"] * 63)


@pytest.mark.parametrize(
    ("task", "example", "message"),
    [
        ("question", Example(IMAGE, LONG, "yes", ""), "a question of 65 tokens is longer than"),
        ("question", Example(IMAGE, "what?", LONG, ""), "an answer of 65 tokens is longer than"),
        ("caption", Example(IMAGE, "", LONG, ""), "a caption of 65 tokens .* 64 positions"),
        ("retrieval", Example(IMAGE, "", LONG, ""), "a caption of 65 tokens is longer than"),
        ("statement", PairExample((IMAGE, IMAGE), LONG, True, ""), "a statement of 65 tokens"),
        (
            "statement",
            Example(IMAGE, "", "fox", ""),
            "1 image, and a BLIP for statements takes two",
        ),
        ("statement", PairExample((IMAGE,) * 3, "a", True, ""), "3 images, and a BLIP"),
        ("caption", PairExample((IMAGE, IMAGE), "a", True, ""), "2 images, .* captions takes one"),
    ],
)
def test_unfit_inputs_are_refused(adapters, task, example, message):
    with pytest.raises(CompExportError, match=message):
        adapters[task].collate([example])
