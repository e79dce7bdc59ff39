"""Run a BLIP's graphs, in any runtime, to verify them (see ``export.proof.compare.Runner``)."""

from typing import Any

import numpy as np

from comp.plan import Part
from export.artifact.caches import PAST, PRESENT
from export.artifact.encoder_manifest import EncoderManifest
from export.artifact.encoder_ports import KINDS, STATES
from export.artifact.manifest import computed_in
from export.onnxruntime.named_graphs import NamedGraphs
from export.proof.compare import Answered, Greedy, greedy
from export.proof.outputs import embedding, statement
from export.proof.outputs import logits as logits_of_words

Values = dict[str, np.ndarray]


class BlipGraphs:
    """All graphs of an artifact; one question at a time.

    ``ask`` takes the same inputs as the torch reference: ``pixel_values`` of one or two images and
    ``input_ids [1, L]`` without padding (for a caption only the images are read).
    """

    def __init__(self, manifest: EncoderManifest, graphs: NamedGraphs) -> None:
        self._manifest = manifest
        self._graphs = graphs

    def ask(self, question: Any, max_new_tokens: int) -> Answered:
        seen = self._graphs.run("vision_model", {"pixel_values": question.pixel_values.numpy()})
        ids = question.input_ids.numpy()
        task = self._manifest.task
        if task == "statement":
            return self._judged(seen, ids)
        if task == "retrieval":
            return self._matched(seen, ids)
        return self._answered(seen, ids, max_new_tokens)

    def _judged(self, seen: Values, ids: np.ndarray) -> Answered:
        states = seen["last_hidden_state"]
        images = {f"{STATES}.{number}": states[number][None] for number in range(len(states))}
        read = self._graphs.run("text_encoder", {"input_ids": ids} | images)
        logits = read["logits"][0]
        kept = self._kept("vision", seen) + self._kept("language", read)
        margin = float(abs(np.diff(logits)[0]))
        return Answered((statement(logits),), kept, [], [int(logits.argmax())], margin)

    def _matched(self, seen: Values, ids: np.ndarray) -> Answered:
        alone = self._graphs.run("text_model", {"input_ids": ids})
        feeds = {"input_ids": ids, STATES: seen["last_hidden_state"]}
        both = self._graphs.run("itm_model", feeds)
        kept = self._kept("vision", seen)
        kept += self._kept("language", alone) + self._kept("language", both)
        embeds = embedding(seen["image_embeds"][0], alone["text_embeds"][0])
        return Answered((embeds, statement(both["logits"][0])), kept, [], [])

    def _answered(self, seen: Values, ids: np.ndarray, max_new_tokens: int) -> Answered:
        memory, kept = seen["last_hidden_state"], self._kept("vision", seen)
        if self._manifest.task == "question":
            read = self._graphs.run("text_encoder", {"input_ids": ids, STATES: memory})
            memory = read["last_hidden_state"]
            kept += self._kept("language", read)
        first, text = self._greedy(memory, max_new_tokens)
        outputs = (logits_of_words(first),)
        return Answered(outputs, kept, [], text.tokens, step_margins=text.margins)

    def _kept(self, part: Part, outputs: Values) -> list[np.ndarray]:
        """Kept positions of a part; those of a second image are offset by the tokens of the first."""
        step = self._manifest.vision.tokens
        return [
            np.concatenate([row + step * n for n, row in enumerate(outputs[f"kept.{passed}"])])
            for of, passed in (drop.place for drop in self._manifest.drops)
            if of == part
        ]

    def _greedy(self, memory: np.ndarray, max_new_tokens: int) -> tuple[np.ndarray, Greedy]:
        """Logits of the first token ``[V]``, and the greedy text including its end token."""
        shape = self._manifest.decoder
        assert shape is not None
        cross = self._graphs.keep("cross_kv", {STATES: memory})
        # Empty arrays; bfloat16 engines, whose type NumPy lacks, ignore their type.
        dtype = np.float32 if computed_in(self._manifest.precision) == "float32" else np.float16
        caches: dict[str, Any] = {
            f"{PAST}{layer}.{kind}": np.zeros((1, heads, 0, shape.head_dim), dtype)
            for layer, heads in enumerate(shape.num_attention_heads)
            for kind in KINDS
        }

        def step(token: int, caches: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
            feeds = {"input_ids": np.array([[token]])} | caches | cross
            rows, present = self._graphs.step("decoder_model", feeds)
            return rows[0, -1], {name.replace(PRESENT, PAST): x for name, x in present.items()}

        first, caches = step(shape.bos_token_id, caches)
        return first, greedy(first, caches, step, (shape.eos_token_id,), max_new_tokens)
