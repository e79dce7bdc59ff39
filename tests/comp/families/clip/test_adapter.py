"""The adapter of CLIP: scores, counts, cuts, searches and saves."""

import pytest
import torch
from transformers import AutoModel

from comp.adapter import Forwarding
from comp.data.emoji_scenes.captions import EmojiCaptions
from comp.data.example import Example
from comp.errors import CompExportError
from comp.families.clip.slim import CompCLIPModel
from comp.flops.block import tower_macs
from comp.flops.encoder import text_macs
from comp.masks import Masks, StructureCounts
from comp.methods.comp import prune
from comp.plan import Workload, keep_count
from comp.search.job import MethodOptions, PruningJob
from comp.tokens.drop_rules import rules_from_plan
from comp.training.data import PruningData
from comp.training.trainer import StepOptions
from comp.utils.compute import Compute
from comp.utils.progress import Progress
from tests.comp.small_clip import FFN, HEADS, LAYERS, WIDTH, random_clip, random_plan

TOKENS = 145


def captioned(count, start=0, split="validation"):
    data = EmojiCaptions(split, start + count)
    return [
        Example(d.image, "", d.captions[0], "caption")
        for d in map(data.__getitem__, range(start, start + count))
    ]


@pytest.fixture(scope="module")
def adapter():
    return random_clip()


@pytest.fixture(scope="module")
def batch(adapter):
    return adapter.collate(captioned(6))


def right_both_ways(output):
    """Whether the best text of each image is its own, then whether the best image of each text is."""
    own = torch.arange(len(output.logits_per_image))
    return torch.cat(
        [scores.argmax(1) == own for scores in (output.logits_per_image, output.logits_per_text)]
    )


@torch.no_grad()
def test_the_loss_equals_clips(adapter, batch):
    scored = adapter.score(batch, Forwarding())
    output = adapter.model(**vars(batch), return_loss=True)
    assert float(scored.loss) == pytest.approx(float(output.loss), abs=1e-5)
    assert torch.equal(scored.correct, right_both_ways(output))
    assert scored.shares == {}


@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_cut_equals_masked(adapter, batch, seed):
    plan = random_plan(seed)
    rules = rules_from_plan(plan.drops)
    masked = adapter.score(batch, Forwarding(Masks.from_plan(plan.blocks), rules))
    slim = adapter.cut(plan)
    cut = slim.score(batch, Forwarding(rules=rules))
    assert float(cut.loss) == pytest.approx(float(masked.loss), abs=1e-4)
    assert cut.shares == masked.shares
    texts = batch.attention_mask.sum(1).tolist()
    for layer in (1, 2):
        share = masked.shares["vision", layer]
        entering = keep_count(TOKENS, 0.6) if layer == 2 else TOKENS
        assert (share.vision, share.vision_kept) == (6 * entering, 6 * keep_count(entering, 0.6))
        assert (share.text, share.text_kept) == (0, 0)
        kept = [keep_count(n, 0.7) for n in texts]
        share = masked.shares["language", layer]
        assert (share.text, share.text_kept) == (sum(texts), sum(kept))
        texts = kept
    assert sum(p.numel() for p in slim.model.parameters()) < sum(
        p.numel() for p in adapter.model.parameters()
    )


@torch.no_grad()
def test_a_slim_checkpoint_is_loaded_by_transformers(adapter, batch, tmp_path):
    plan = random_plan(1)
    slim = adapter.cut(plan)
    slim.save(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(loaded, CompCLIPModel)
    assert loaded.drops == plan.drops
    output = loaded(**vars(batch))
    scored = slim.score(batch, Forwarding(rules=rules_from_plan(plan.drops)))
    assert torch.equal(scored.correct, right_both_ways(output))
    assert (
        adapter.model.vision_model.encoder.layers[0].mlp.fc1.out_features == FFN
    )  # nothing was patched


def test_macs_are_counted_by_part(adapter):
    on = Workload(image_tokens=TOKENS, text_tokens=12)
    nothing = StructureCounts({}, {})
    shape = adapter.shape
    whole = tower_macs(shape.vision) + text_macs(shape.text, 12) + 24 * 2 * WIDTH
    assert adapter.macs(nothing, {}, on) == whole
    heads = StructureCounts({("vision", 0): 1}, {("language", 2): 16})
    width = WIDTH // HEADS * 3
    less = 4 * TOKENS * WIDTH * width + 2 * TOKENS * TOKENS * width + 2 * 12 * WIDTH * (FFN - 16)
    assert adapter.macs(heads, {}, on) == whole - less
    left = keep_count(TOKENS, 0.5)
    gone = TOKENS - left
    later = LAYERS - 1
    saved = 2 * gone * WIDTH * FFN + 5 * gone * WIDTH  # FFN and norm of the first block
    saved += later * (4 * gone * WIDTH * WIDTH + 2 * (TOKENS**2 - left**2) * WIDTH)
    saved += later * (2 * gone * WIDTH * FFN + 10 * gone * WIDTH) + 5 * gone * WIDTH
    assert adapter.macs(nothing, {("vision", 1): (0.5, 1.0)}, on) == whole - saved


def test_long_captions_are_refused(adapter):
    example = captioned(1)[0]
    long = Example(example.image, "", " ".join(["fox"] * 63), "caption")
    with pytest.raises(CompExportError, match="65 tokens is longer than the model's 64 positions"):
        adapter.collate([long])


@pytest.mark.slow
def test_comp_prunes_both_towers(tmp_path):
    """Search on four modes: the rate is met, and every part loses something."""
    adapter = random_clip(1)
    train = captioned(64, split="train")
    data = PruningData(
        train,
        [adapter.collate(train[:16]), adapter.collate(train[16:32])],
        [adapter.collate(captioned(32))],
    )
    adapter.train_parts({"vision", "language"})
    options = MethodOptions(
        rate=0.5,
        modes=adapter.default_modes,
        stages=6,
        steps_per_stage=2,
        align=8,
        training=StepOptions(batch_size=16),
    )
    compute = Compute("cpu", "float32")
    (tmp_path / "state").mkdir()
    outcome = prune(
        PruningJob(
            adapter, compute, data, options, "tiny", tmp_path / "state", Progress(quiet=True)
        )
    )
    plan = outcome.plan
    assert plan.rate == pytest.approx(0.5, abs=0.02)
    assert plan.family == "clip"
    assert {drop.part for drop in plan.drops} == {"vision", "language"}
    for drop in plan.drops:
        assert (drop.text_keep_ratio if drop.part == "vision" else drop.vision_keep_ratio) == 1
    slim = adapter.cut(plan)
    batch = adapter.collate(captioned(8))
    rules = rules_from_plan(plan.drops)
    with torch.no_grad():
        one = adapter.score(batch, Forwarding(Masks.from_plan(plan.blocks), rules))
        two = slim.score(batch, Forwarding(rules=rules))
    assert float(one.loss) == pytest.approx(float(two.loss), abs=1e-4)
