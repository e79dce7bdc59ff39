"""Verify a CLIP: run the image and text of each pair in torch and in the graphs.

Compared are both embeddings, the tokens kept in both towers, and the ranking: which text is nearest to each
image among all pairs, and which image to each text.
"""

import torch

from comp.adapter import Forwarding
from comp.families.clip.adapter import ClipAdapter
from comp.families.clip.forward import embed_images, embed_texts
from comp.families.encoder.adapter import EncoderBatch, options_of
from comp.masks import Masks
from comp.plan import DropPlan, PruningPlan
from comp.tokens.drop_rules import RatioRule
from export.artifact.encoder_manifest import EncoderManifest
from export.configs.text_end import read_to_end
from export.onnxruntime.named_graphs import NamedGraphs
from export.proof.compare import Answered
from export.proof.families import Verification
from export.proof.masked_torch import RecordingRule, recorded_scores
from export.proof.outputs import embedding
from export.proof.torch_reference import TorchReference


class ClipTorch:
    """A CLIP with optional masks and drops (see ``export.proof.compare.Runner``)."""

    def __init__(
        self, adapter: ClipAdapter, drops: tuple[DropPlan, ...], masks: Masks | None
    ) -> None:
        self._adapter = adapter
        self._drops = drops
        self._masks = masks

    @torch.no_grad()
    def ask(self, question: EncoderBatch, max_new_tokens: int) -> Answered:
        """Run one image with its text."""
        del max_new_tokens  # nothing is generated
        batch, model = question.to(self._adapter.device), self._adapter.model
        recorders = {drop.place: RecordingRule(RatioRule.from_plan(drop)) for drop in self._drops}
        how = Forwarding(self._masks, dict(recorders))
        images = embed_images(model, batch.pixel_values, options_of(how, "vision"))
        texts = embed_texts(
            model, batch.input_ids, batch.attention_mask, options_of(how, "language")
        )
        both = {"vision": images, "language": texts}
        kept = [both[part].encoded.kept[n].index[0].cpu().numpy() for part, n in recorders]
        scores = [
            recorded_scores(recorder, both[part].encoded, n)
            for (part, n), recorder in recorders.items()
        ]
        embeds = (each.embeds[0].float().cpu().numpy() for each in (images, texts))
        return Answered((embedding(*embeds),), kept, scores, [])


class ClipGraphs:
    """A CLIP's graphs in any runtime (see ``export.proof.compare.Runner``)."""

    def __init__(self, manifest: EncoderManifest, graphs: NamedGraphs) -> None:
        self._drops = manifest.drops
        self._end = manifest.end_of_text
        self._graphs = graphs

    def ask(self, question: EncoderBatch, max_new_tokens: int) -> Answered:
        """Run one image with its text, which is cut after its end."""
        del max_new_tokens
        ids = read_to_end(question.input_ids.numpy()[0], self._end)[None]
        seen = self._graphs.run("vision_model", {"pixel_values": question.pixel_values.numpy()})
        read = self._graphs.run("text_model", {"input_ids": ids})
        both = {"vision": seen, "language": read}
        kept = [both[drop.part][f"kept.{drop.after_layer}"][0] for drop in self._drops]
        embeds = embedding(seen["image_embeds"][0], read["text_embeds"][0])
        return Answered((embeds,), kept, [], [])


class ClipTorchReference(TorchReference[ClipAdapter]):
    """The torch models of a CLIP's run."""

    def runner(
        self, adapter: ClipAdapter, plan: PruningPlan | None, masks: Masks | None
    ) -> ClipTorch:
        return ClipTorch(adapter, () if plan is None else plan.drops, masks)


VERIFICATION = Verification.of_graphs(ClipTorchReference.load, ClipGraphs)
