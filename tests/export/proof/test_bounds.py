"""Every bound of ``verify`` fails on a deliberately wrong artifact, and holds on a correct one."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from comp.data.emoji_scenes.captions import CaptionExamples
from comp.plan import PruningPlan, Workload
from export.artifact.load import load_artifact
from export.artifact.manifest import computed_in
from export.exporter import Origin, export_artifact
from export.graph.builder import Target
from export.proof.compare import ask_all, compare
from export.proof.families import Verification
from export.proof.integer_weights import (
    RoundedWeights,
    integer_weights,
    replaced_weights,
    rounded_from,
)
from export.proof.interface import RuntimeVariant
from export.proof.outputs import (
    BOUNDS,
    Worst,
    differences,
    embedding,
    logits,
    similarity,
    statement,
)
from tests.comp.small_blip import examples_of, random_blip
from tests.comp.small_clip import random_clip
from tests.export.tiny import save_checkpoint, tiny_config, tiny_model

WIDTH = 64  # of encoders: 4 bits take groups of 16 and more
HEADS = 4  # of the layers below, the first two of which change places

# By kind of output: a query projection, a bias and a matrix of the model that gives them.
TENSORS = {
    "embedding": (
        "vision_model.encoder.layers.1.self_attn.q_proj.weight",
        "vision_model.encoder.layers.1.mlp.fc2.bias",
        "vision_model.encoder.layers.1.mlp.fc2.weight",
    ),
    "statement": (
        "text_encoder.encoder.layer.1.attention.self.query.weight",
        "text_encoder.encoder.layer.1.output.dense.bias",
        "text_encoder.encoder.layer.1.output.dense.weight",
    ),
    "logits": (
        "layers.2.self_attn.q_proj.weight",
        "multi_modal_projector.linear_2.bias",
        "layers.2.mlp.down_proj.weight",
    ),
}
COARSE = ("bfloat16", "int8", "int4")
FAULTS = ("permuted head", "dropped bias", "dropped biases", "wrong scale")
# Faults that rounding hides (docs/explanation/proof.md): the smallest ones, in numbers of 8 bits.
MISSED = {(kind, precision): {"dropped bias"} for kind in TENSORS for precision in COARSE}
PRECISIONS = ("float32", "float16", "bfloat16", "int8", "int4")


def damaged(weights, kind, fault):
    """The weights with one fault; ``wrong scale`` is of half of a layer's outputs."""
    head, bias, matrix = (
        next(name for name in weights if name.endswith(end) and not _of_tower(name, kind))
        for end in TENSORS[kind]
    )
    result = dict(weights)
    if fault == "permuted head":
        heads = list(weights[head].chunk(HEADS))
        result[head] = torch.cat([heads[1], heads[0], *heads[2:]])
    elif fault == "dropped bias":
        result[bias] = torch.zeros_like(weights[bias])
    elif fault == "dropped biases":
        result |= {
            name: torch.zeros_like(values)
            for name, values in weights.items()
            if name.endswith(".bias") and "norm" not in name.lower()
        }
    else:
        scales = torch.ones(len(weights[matrix]), 1)
        scales[::2] = 2
        result[matrix] = weights[matrix] * scales
    return result


def _of_tower(name, kind):
    """Whether a tensor of a LLaVA is the image tower's, whose last layer nothing reads."""
    return kind == "logits" and "vision_tower" in name


@dataclass(eq=False)
class Proof:
    """A small random model, correct and wrong checkpoints of it, and the torch reference."""

    kind: str
    folder: object
    checkpoint: object
    side: object
    questions: list

    @cache  # noqa: B019, as long as the module's fixture
    def wrong(self, fault):
        """A checkpoint with a fault."""
        copy = self.folder / fault.replace(" ", "-")
        copy.mkdir()
        for file in self.checkpoint.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        weights = load_file(self.checkpoint / "model.safetensors")
        kept = {
            name: value.contiguous() for name, value in damaged(weights, self.kind, fault).items()
        }
        save_file(kept, copy / "model.safetensors", {"format": "pt"})
        return copy

    def artifact(self, precision, fault):
        flavour = "standard" if precision in ("int8", "int4") else "onnxruntime"
        out = self.folder / f"{precision}-{fault}".replace(" ", "-")
        checkpoint = self.checkpoint if fault is None else self.wrong(fault)
        export_artifact(checkpoint, out, Origin("small"), Target(flavour, precision))
        return load_artifact(out)

    @cache  # noqa: B019
    def right(self):
        return ask_all(self.side.slim_runner(), self.questions, 1)

    def proved(self, precision, fault=None):
        """Compare links and weights as ``verify`` does, of an artifact with or without a fault."""
        if precision == "bfloat16":
            return self._in_bfloat16(fault), None
        artifact = self.artifact(precision, fault)
        family, expected, weights = Verification.of(artifact), self.right(), None
        if computed_in(precision) != precision:
            integers, model = integer_weights(artifact.path), self.side.slim.model
            weights = rounded_from("weights", precision, model, integers, family.naming)
            with replaced_weights(model, integers, family.naming):
                expected = ask_all(self.side.slim_runner(), self.questions, 1)
        variants = (each for each in family.variants(artifact) if isinstance(each, RuntimeVariant))
        result = ask_all(next(variants).load(), self.questions, 1)
        return compare("link", precision, (), expected, result), weights

    def _in_bfloat16(self, fault):
        """torch in bfloat16, in place of a runtime, because few CPUs support it."""
        model = self.side.slim.model
        whole = {name: value.clone() for name, value in model.state_dict().items()}
        if fault is not None:
            model.load_state_dict(damaged(whole, self.kind, fault))
        with torch.autocast("cpu", torch.bfloat16):
            result = ask_all(self.side.slim_runner(), self.questions, 1)
        model.load_state_dict(whole)
        return compare("link", "bfloat16", (), self.right(), result)


@pytest.fixture(scope="module")
def proofs(tmp_path_factory):
    @cache
    def made(kind):
        folder = tmp_path_factory.mktemp(kind)
        checkpoint = folder / "dense"
        if kind == "embedding":
            random_clip(2, width=WIDTH).save(checkpoint)
            data = CaptionExamples("test", 4)
        elif kind == "statement":
            random_blip("statement", seed=2, width=WIDTH).save(checkpoint)
            data = examples_of("statement", 4)
        else:
            save_checkpoint(tiny_model(tiny_config(text_hidden_size=32), seed=6), checkpoint)
            data = examples_of("question", 4)
        proof = Proof(kind, folder, checkpoint, None, [])
        artifact = proof.artifact("float32", None)
        plan = PruningPlan(
            family=artifact.manifest.family,
            model="small",
            method="none",
            rate=0,
            workload=Workload(image_tokens=1, text_tokens=1),
            macs_dense=1,
            macs=1,
            blocks=(),
            drops=(),
        )
        proof.side = Verification.of(artifact).load(None, checkpoint, plan, artifact, "cpu")
        proof.questions = [proof.side.prepare(data[number]) for number in range(4)]
        return proof

    return made


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", TENSORS)
def test_bounds_hold_on_a_right_artifact_and_fail_on_wrong_ones(proofs, kind, precision):
    proof = proofs(kind)
    link, weights = proof.proved(precision)
    assert not link.outputs.beyond(link.bounds), link.outputs
    assert weights is None or weights.ok, weights
    caught = {}
    for fault in FAULTS:
        link, weights = proof.proved(precision, fault)
        beyond = bool(link.outputs.beyond(link.bounds))
        caught[fault] = beyond or not (weights is None or weights.ok)
        if fault == "dropped biases":
            assert beyond  # of numbers that are no integers: outputs alone tell
    missed = {fault for fault, is_caught in caught.items() if not is_caught}
    hidden = MISSED.get((kind, precision), set())
    # oneDNN's bfloat16 kernels for AVX-512 show a fault that those for AVX2 hide (ONEDNN_MAX_CPU_ISA=AVX2).
    assert missed <= hidden if precision == "bfloat16" else missed == hidden
    assert len(missed) < len(FAULTS)


ROWS = np.random.default_rng(0)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_difference_is_measured_by_its_kind(precision):
    bounds = BOUNDS[precision]

    def beyond(mine, theirs):
        return Worst(differences(mine, theirs)).beyond(bounds)

    vector = ROWS.standard_normal(64)
    vector /= np.linalg.norm(vector)
    other = np.roll(vector, 1)
    assert beyond(embedding(vector), embedding(vector)) == []
    assert ("embedding", "cosine distance") in beyond(embedding(vector), embedding(other))
    # A vector twice as long points the same way: its elements tell.
    assert beyond(embedding(vector), embedding(2 * vector)) == [("embedding", "absolute")]
    # One wrong row of two is not averaged away.
    assert beyond(embedding(vector, vector), embedding(vector, other))

    flat = 0.01 * ROWS.standard_normal(64)  # no difference of these exceeds an absolute bound of 1
    assert ("logits", "share of spread") in beyond(logits(flat), logits(np.roll(flat, 1)))
    steep = 100 * ROWS.standard_normal(64)
    one_wrong = steep.copy()
    one_wrong[3] += 2
    assert ("logits", "absolute") in beyond(logits(steep), logits(one_wrong))

    assert ("statement", "probability") in beyond(
        statement(np.array([0.0, 0.1])), statement(np.array([0.1, 0.0]))
    ) or precision not in ("float32", "float16")
    assert ("statement", "probability") in beyond(
        statement(np.array([0.0, 0.2])), statement(np.array([0.2, 0.0]))
    )
    sure = statement(np.array([-9.0, 9.0])), statement(np.array([-8.0, 8.0]))
    assert ("statement", "absolute") in beyond(*sure)  # their probabilities differ by 1e-7

    assert beyond(similarity(np.array([20.0]), 100), similarity(np.array([25.0]), 100))


@pytest.mark.parametrize("make", [embedding, logits, statement, similarity])
def test_nan_exceeds_every_bound(make):
    whole = np.array([0.6, 0.8])
    broken = np.array([0.6, np.nan])
    worst = Worst(differences(make(whole), make(whole)))
    worst.add(differences(make(whole), make(broken)))
    worst.add(differences(make(whole), make(whole)))
    assert worst.beyond(BOUNDS["int4"])
    assert all(each["worst"] is None for each in worst.to_dicts(BOUNDS["int4"]))


def test_integers_of_another_shape_do_not_hold():
    model = torch.nn.Sequential(torch.nn.Linear(4, 3))
    weight = model[0].weight.detach().numpy()
    right = rounded_from("weights", "int8", model, {"0.weight": weight})
    assert (right.ok, right.worst) == (True, 0)
    wrong = rounded_from("weights", "int8", model, {"0.weight": weight[:2]})
    assert not wrong.ok
    assert wrong.to_dict()["max_row_distance"] is None
    assert not RoundedWeights("weights", "int4", float("nan"), "0.weight").ok
