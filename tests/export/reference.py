"""A small torch reference of the compressed decoder, from the semantics, not from the graphs.

It *masks*: removed heads and channels of the dense model are zeroed, so it also checks that cutting
them physically is the same.
"""

import math

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration

from comp.plan import PruningPlan, keep_count
from export.onnxruntime.graph import OrtGraph
from export.proof.compare import greedy
from export.proof.llava_onnx import OnnxRunner


class MaskedReference:
    """Batch of one prompt: prefill with drops, then decode steps with per-layer caches."""

    def __init__(self, model: LlavaForConditionalGeneration, plan: PruningPlan | None) -> None:
        self.model = model.eval()
        self.text = model.model.language_model
        self.config = model.config.text_config
        self.drops = {drop.after_layer: drop for drop in plan.drops} if plan else {}
        self.blocks = {block.index: block for block in plan.part("language")} if plan else {}
        self.cache: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.position = 0

    @torch.no_grad()
    def prefill(
        self, pixel_values: torch.Tensor | None, input_ids: torch.Tensor, keep_factor: float = 1.0
    ) -> tuple[torch.Tensor, list[list[int]]]:
        embeds = self.text.embed_tokens(input_ids)
        is_image = input_ids[0] == self.model.config.image_token_id
        if pixel_values is not None:
            features = self.model.get_image_features(pixel_values).pooler_output
            embeds[0, is_image] = torch.cat(list(features), 0)
        self.cache = []
        count = input_ids.shape[1]
        self.position = count
        return self._run(embeds[0], torch.arange(count), is_image, keep_factor)

    @torch.no_grad()
    def step(self, token: int) -> torch.Tensor:
        embeds = self.text.embed_tokens(torch.tensor([token]))
        position = torch.tensor([self.position])
        self.position += 1
        return self._run(embeds, position, torch.zeros(1, dtype=torch.bool), None)[0]

    def generate(self, pixel_values, input_ids, max_new_tokens, eos=()) -> list[int]:
        logits, _ = self.prefill(pixel_values, input_ids)
        result = [int(logits.argmax())]
        while len(result) < max_new_tokens and result[-1] not in eos:
            result.append(int(self.step(result[-1]).argmax()))
        return result

    def _run(self, x, position, is_image, keep_factor):
        """``x [N, d]``; returns logits ``[V]`` and kept original indices per place."""
        decoding = keep_factor is None
        original = torch.arange(len(x))
        kept = []
        for number, layer in enumerate(self.text.layers):
            x, weights, key = self._block(number, layer, x, position)
            drop = self.drops.get(number + 1)
            if drop is None or decoding:
                continue
            if drop.ranking == "received":
                scores = weights[:, -1].amax(0)
            elif drop.ranking == "mean_head":
                scores = weights[:, -1].sum(0) / len(self._alive(number).nonzero())
            elif drop.ranking == "next_layer":
                scores = self._by_next(number + 1, x, position)
            else:
                scores = self._distances(number, key, x, is_image)
            scores[-1] += 2
            keep = []
            for mine, ratio in (
                (is_image, drop.vision_keep_ratio),
                (~is_image, drop.text_keep_ratio),
            ):
                thousandths = min(1000, max(1, round(round(ratio * 1000) * keep_factor)))
                places = mine.nonzero()[:, 0]
                k = keep_count(len(places), thousandths / 1000)
                keep += places[scores[places].argsort(descending=True, stable=True)[:k]].tolist()
            keep = sorted(keep)
            x, position, is_image, original = (v[keep] for v in (x, position, is_image, original))
            kept.append(original.tolist())
        return self.model.lm_head(self.text.norm(x[-1])), kept

    def _alive(self, number):
        block = self.blocks.get(number)
        heads = range(self.config.num_attention_heads) if block is None else block.kept_heads
        return torch.zeros(self.config.num_attention_heads).scatter(0, torch.tensor([*heads]), 1.0)

    def _by_next(self, number, x, position):
        """PyramidDrop, one head and token at a time."""
        layer, config = self.text.layers[number], self.config
        heads, groups, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        normed = layer.input_layernorm(x)
        cos, sin = (table[0] for table in self.text.rotary_emb(x[None], position[None]))

        def turned(row, at):
            return row * cos[at] + torch.cat([-row[dim // 2 :], row[: dim // 2]]) * sin[at]

        queries = self._normed(layer, "q", layer.self_attn.q_proj(normed[-1]).view(heads, dim))
        keys = self._normed(layer, "k", layer.self_attn.k_proj(normed).view(-1, groups, dim))
        rows = []
        for head in self._alive(number).nonzero()[:, 0].tolist():
            query = turned(queries[head], -1)
            seen = [
                query @ turned(keys[at, head * groups // heads], at) / math.sqrt(dim)
                for at in range(len(x))
            ]
            rows.append(torch.stack(seen).softmax(0))
        return torch.stack(rows).mean(0)

    @staticmethod
    def _normed(layer, kind: str, rows: torch.Tensor) -> torch.Tensor:
        """Each head ``[..., hd]`` normalised by itself, as Qwen3 does."""
        norm = getattr(layer.self_attn, f"{kind}_norm", None)
        if norm is None:
            return rows
        root = (rows.double().pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
        return (rows / root).float() * norm.weight

    def _distances(self, number, key, x, is_image):
        """DART, one pair of tokens at a time; key ``[H, N, hd]`` of the block before."""
        group = self.config.num_attention_heads // self.config.num_key_value_heads
        heads = [h for h in self._alive(number).nonzero()[:, 0].tolist() if h % group == 0]
        norm = [float(key[heads, at].abs().sum()) for at in range(len(x))]
        pivots = []
        for image in (True, False):
            mine = [at for at in range(len(x)) if bool(is_image[at]) == image]
            pivots += sorted(mine, key=lambda at: -norm[at])[:4]
        normed = self.text.layers[number + 1].input_layernorm(x)
        scores = []
        for at in range(len(x)):
            least = min(float(torch.cosine_similarity(normed[at], normed[p], 0)) for p in pivots)
            scores.append((1 - least) / 4 + (0.5 if at in pivots else 0))
        return torch.tensor(scores)

    def _block(self, number, layer, x, position):
        attention, config = layer.self_attn, self.config
        heads, groups, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        block, alive = self.blocks.get(number), self._alive(number)
        normed = layer.input_layernorm(x)
        cos, sin = self.text.rotary_emb(x[None], position[None])

        def turned(y):  # [H, N, hd]
            left, right = y[..., : dim // 2], y[..., dim // 2 :]
            return y * cos[0] + torch.cat([-right, left], -1) * sin[0]

        query = self._normed(layer, "q", attention.q_proj(normed).view(-1, heads, dim))
        key = self._normed(layer, "k", attention.k_proj(normed).view(-1, groups, dim))
        query, key = turned(query.transpose(0, 1)), turned(key.transpose(0, 1))
        value = attention.v_proj(normed).view(-1, groups, dim).transpose(0, 1)
        if number < len(self.cache):
            key = torch.cat([self.cache[number][0], key], 1)
            value = torch.cat([self.cache[number][1], value], 1)
            self.cache[number] = (key, value)
        else:
            self.cache.append((key, value))
        key, value = (y.repeat_interleave(heads // groups, 0) for y in (key, value))
        logits = query @ key.transpose(1, 2) / math.sqrt(dim)  # [H, N, M]
        n, m = logits.shape[1:]
        logits = logits.masked_fill(
            torch.arange(m)[None] > torch.arange(m - n, m)[:, None], -torch.inf
        )
        weights = logits.softmax(-1)
        mixed = (weights @ value) * alive[:, None, None]
        x = x + attention.o_proj(mixed.transpose(0, 1).reshape(n, heads * dim))
        normed = layer.post_attention_layernorm(x)
        wide = torch.nn.functional.silu(layer.mlp.gate_proj(normed)) * layer.mlp.up_proj(normed)
        if block is not None:
            mask = torch.zeros(wide.shape[-1])
            mask[list(block.kept_channels)] = 1
            wide = wide * mask
        return x + layer.mlp.down_proj(wide), weights * alive[:, None, None], key


def generated(runner: OnnxRunner, pixel_values, input_ids, max_new_tokens: int) -> list[int]:
    """Greedy new tokens of one prompt ``input_ids [1, N]`` by graphs, up to and with the end."""
    logits, _, state = runner.prefill(pixel_values, input_ids)

    def step(token, state):
        rows, state = runner.step(np.array([token]), state)
        return rows[0], state

    ends = runner.artifact.manifest.tokens.eos_token_ids
    return greedy(logits[0], state, step, ends, max_new_tokens).tokens


def features_of(runner: OnnxRunner, pixel_values: np.ndarray) -> np.ndarray:
    """Features ``[I, T, d]`` of images ``[I, 3, H, W]`` by the graph of an artifact."""
    graph = OrtGraph(runner.artifact.graph("vision_encoder"))
    return graph.run({"pixel_values": pixel_values.astype(np.float32)})["image_features"]
