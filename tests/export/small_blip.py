"""Small random BLIPs of every task, plans for them, their graphs, and the torch reference."""

import json

import numpy as np
import onnxruntime as ort
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipTextConfig,
    BlipVisionConfig,
)

from comp.checkpoints.blip_slices import BlipCuts
from comp.families.blip.nlvr import BlipForNlvr2, BlipNlvrConfig
from comp.families.blip.text_forward import Memory, read, see
from comp.families.encoder.forward import EncoderOptions
from comp.masks import Masks
from comp.plan import BlockPlan, DropPlan, PruningPlan, Workload
from comp.tokens.dictionary import responses_of
from comp.tokens.drop_rules import RatioRule
from export.families.blip.graphs import build_blip_graphs
from export.weights.checkpoint import CheckpointWeights
from tests.export.shapes import read_blip

TASKS = ("question", "caption", "retrieval", "statement")
LAYERS, FFN, WIDTH, HEADS = 3, 40, 64, 4
HEAD_DIM = WIDTH // HEADS
VISION_WIDTH, VISION_HEADS, VISION_DIM = 48, 3, 16
VOCAB, POSITIONS, PROJECTION = 60, 16, 24
IMAGE_SIZE, PATCH_SIZE = 56, 14
IMAGE_TOKENS = 17
BOS, SEP = 1, 2
CLASSES = {
    "question": BlipForQuestionAnswering,
    "caption": BlipForConditionalGeneration,
    "retrieval": BlipForImageTextRetrieval,
}


def random_blip(task, seed=0, act="gelu"):
    """Weights large enough that attention is not flat, biases that matter."""
    torch.manual_seed(seed)
    wide = task == "question"  # its decoder looks at texts through projections that fit both
    vision = BlipVisionConfig(
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_size=WIDTH if wide else VISION_WIDTH,
        num_attention_heads=WIDTH // VISION_DIM if wide else VISION_HEADS,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        hidden_act=act,
    )
    text = BlipTextConfig(
        vocab_size=VOCAB,
        max_position_embeddings=POSITIONS,
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        encoder_hidden_size=vision.hidden_size,
        bos_token_id=BOS,
        sep_token_id=SEP,
        eos_token_id=SEP,
        pad_token_id=0,
        hidden_act=act,
    )
    if task == "statement":
        model = BlipForNlvr2(
            BlipNlvrConfig(vision_config=vision, text_config=text, merge_from_layer=1)
        )
    else:
        config = BlipConfig(
            vision_config=vision.to_dict(),
            text_config=text.to_dict(),
            image_text_hidden_size=PROJECTION,
        )
        model = CLASSES[task](config)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=1.4 * parameter[0].numel() ** -0.5)
        else:
            nn.init.normal_(
                parameter, mean=float("norm" in name.lower() and "weight" in name), std=0.1
            )
    return model.eval()


def text_blocks(task):
    """Blocks of the text encoder, and of all text models."""
    return {"question": (LAYERS, 2 * LAYERS), "caption": (0, LAYERS)}.get(task, (LAYERS, LAYERS))


def random_plan(task, seed=0, seen=0.6, read=0.7, heads_from=1):
    """Random heads and channels; these shares of tokens dropped in every block of both encoders."""
    rng = np.random.default_rng(seed)
    encoder, language = text_blocks(task)
    tower_heads = WIDTH // VISION_DIM if task == "question" else VISION_HEADS

    def some(of, least):
        return tuple(sorted(rng.permutation(of)[: rng.integers(least, of + 1)].tolist()))

    parts = (
        ("vision", LAYERS, tower_heads, FFN),
        ("language", language, HEADS, FFN),
        ("cross", language * (2 if task == "statement" else 1), HEADS, 0),
    )
    blocks = tuple(
        BlockPlan(
            part=part,
            index=index,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            intermediate_size=channels,
            kept_key_value_heads=some(heads, min(heads_from, heads)),
            kept_channels=some(channels, 4) if channels else (),
        )
        for part, count, heads, channels in parts
        for index in range(count)
    )
    drops = tuple(
        DropPlan(part=part, after_layer=layer, vision_keep_ratio=vision, text_keep_ratio=text)
        for part, count, vision, text in (
            ("vision", LAYERS, seen, 1.0),
            ("language", encoder, 1.0, read),
        )
        for layer in range(1, count + 1)
    )
    return PruningPlan(
        family="blip",
        model="tiny",
        method="test",
        rate=0.5,
        workload=Workload(image_tokens=IMAGE_TOKENS, text_tokens=7),
        macs_dense=2,
        macs=1,
        blocks=blocks,
        drops=drops,
    )


def cuts_of(task, plan):
    dims = {"vision": VISION_DIM, "language": HEAD_DIM, "cross": HEAD_DIM}
    return BlipCuts(plan, dims, text_blocks(task)[0], branches=2 if task == "statement" else 1)


def save_blip(task, model, directory, plan=None):
    """A checkpoint: as transformers writes it, or cut with the configuration of a slim one."""
    model.save_pretrained(directory)
    if plan is None:
        return directory
    cuts, state = cuts_of(task, plan), {}
    for name in CheckpointWeights(directory, naming=str).names():
        tensor, cut = model.state_dict()[name], cuts.of(name)
        if cut is not None:
            tensor = tensor.index_select(cut.axis, torch.tensor(cut.keep))
        state[name] = tensor.contiguous()
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    if task != "statement":
        config |= {
            "model_type": "comp_blip",
            "architectures": [f"Comp{config['architectures'][0]}"],
        }
    config["pruning"] = {
        part: {
            "num_attention_heads": [len(block.kept_heads) for block in plan.part(part)],
            "intermediate_size": [len(block.kept_channels) for block in plan.part(part)],
        }
        for part in ("vision", "language")
    } | {
        "cross": {"num_attention_heads": [len(b.kept_heads) for b in plan.part("cross")]},
        "drops": [drop.model_dump() for drop in plan.drops],
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory


class Graphs:
    """The graphs of a checkpoint in ONNX Runtime."""

    def __init__(self, checkpoint, directory, target):
        directory.mkdir()
        self.directory, self.names = directory, []
        self.shape = read_blip(checkpoint)
        weights = CheckpointWeights(checkpoint, naming=str)
        build_blip_graphs(self.shape, weights, target, directory, self.names.append)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self.sessions = {
            name.removesuffix(".onnx"): ort.InferenceSession(str(directory / name), options)
            for name in self.names
        }

    def run(self, name, **feed):
        """Outputs by name, those of ``kept`` apart; ``__`` in an input's name stands for a dot."""
        session = self.sessions[name]
        names = [output.name for output in session.get_outputs()]
        arrays = {key.replace("__", "."): np.asarray(value) for key, value in feed.items()}
        result = dict(zip(names, session.run(names, arrays), strict=True))
        kept = {int(key[5:]): result.pop(key) for key in list(result) if key.startswith("kept.")}
        return result, kept

    def see(self, pixels):
        result, kept = self.run("vision_model", pixel_values=pixels)
        return result, kept

    def answerer(self, states):
        """A generation that looks at ``states``."""
        return Generation(self, self.run("cross_kv", encoder_hidden_states=states)[0])


class Generation:
    """The decoder with its caches, for rows that look at the same states throughout."""

    def __init__(self, graphs, cross):
        self.graphs, self.cross = graphs, cross
        batch = len(next(iter(cross.values())))
        self.past = {}
        for node in graphs.sessions["decoder_model"].get_inputs():
            if node.name.startswith("past_key_values."):
                empty = (batch, node.shape[1], 0, node.shape[3])
                kind = np.float16 if "float16" in node.type else np.float32
                self.past[node.name] = np.zeros(empty, kind)

    def step(self, ids):
        """Logits ``[B, V]`` of the last of these tokens ``[B, N]``."""
        session = self.graphs.sessions["decoder_model"]
        names = [output.name for output in session.get_outputs()]
        feed = {"input_ids": np.asarray(ids, np.int64), **self.past, **self.cross}
        result = dict(zip(names, session.run(names, feed), strict=True))
        logits = result.pop("logits")
        self.past = {
            name.replace("present", "past_key_values"): value for name, value in result.items()
        }
        return logits[:, 0]

    def greedy(self, ids, count):
        """Rows of token ids, until all have ended; behind its end a row is padded."""
        rows, done = np.asarray(ids), np.zeros(len(ids), bool)
        new = rows
        for _ in range(count):
            token = np.where(done, 0, self.step(new).argmax(-1))
            new = token[:, None]
            rows = np.concatenate([rows, new], axis=1)
            done |= token == SEP
            if done.all():
                break
        return rows


class Reference:
    """The dense model in torch, with a plan's masks and rules."""

    def __init__(self, task, model, plan=None):
        self.task, self.model = task, model
        self.masks = None if plan is None else Masks.from_plan(plan.blocks)
        self.rules = {"vision": {}, "language": {}}
        for drop in plan.drops if plan else ():
            self.rules[drop.part][drop.after_layer] = RatioRule.from_plan(drop)

    @torch.no_grad()
    def see(self, pixels):
        responses = responses_of(self.model, "vision")
        options = EncoderOptions(self.masks, self.rules["vision"], responses=responses)
        return see(self.model.vision_model, pixels, options)

    @torch.no_grad()
    def read(self, ids, *states):
        memories = [Memory.of_image(each) for each in states]
        responses = responses_of(self.model, "language")
        options = EncoderOptions(self.masks, self.rules["language"], responses=responses)
        return read(self.model.text_encoder, ids, torch.ones_like(ids), memories, options)

    @torch.no_grad()
    def logits(self, ids, states):
        """Of every token ``[B, N, V]`` of a decoder that looks at ``states``."""
        options, first = EncoderOptions(self.masks), text_blocks(self.task)[0]
        decoder, ones = self.model.text_decoder, torch.ones_like(ids)
        memories = [Memory.of_image(states)]
        result = read(decoder.bert, ids, ones, memories, options, causal=True, first=first)
        return decoder.cls(result.tokens.states)


def places(encoded):
    """Kept places by block, as the graphs give them."""
    return {layer: tokens.index.numpy() for layer, tokens in encoded.kept.items()}
