"""Verify a LLaVA: the masked, slim and dense torch models, run like an artifact.

They run in ``comp``'s own decoder, so that the scores of drops can be recorded.
"""

import math

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration

from comp.checkpoints.llava_shape import ModelShape
from comp.checkpoints.tensor_names import canonical_name
from comp.data.example import Example
from comp.families.llava.adapter import LlavaAdapter
from comp.families.llava.decoder import DecoderCache, DecoderOptions
from comp.families.llava.forward import IGNORE, LlavaBatch, answer_step, prompt_kinds, run_llava
from comp.families.llava.parts import parts_of
from comp.masks import Masks
from comp.plan import DropPlan, ImageSelection, Place, PruningPlan
from comp.tokens.drop_rules import DropRule, RatioRule
from export.artifact.llava_manifest import LlavaArtifact
from export.proof.families import Verification
from export.proof.llava_prompts import Prefilled, PromptRunner, Question, places_in_all
from export.proof.llava_runtimes import LlavaEngines, llava_on_graphs, llava_variants
from export.proof.masked_torch import RecordingRule, scores_at
from export.proof.torch_reference import TorchReference


class TorchRunner(PromptRunner):
    """A LLaVA with optional masks, drops and selection of image tokens."""

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        eos: tuple[int, ...],
        drops: tuple[DropPlan, ...],
        masks: Masks | None,
        selection: ImageSelection | None,
    ) -> None:
        self._model = model.eval()
        self._selection = selection
        sizes = ModelShape.from_config(model.config.to_dict())
        self.image = (model.config.image_token_id, sizes.selecting(selection).image_tokens)
        self.eos = eos
        self._drops = drops
        self._masks = masks

    @torch.no_grad()
    def prefill(self, pixel_values: np.ndarray, input_ids: np.ndarray) -> Prefilled:
        """Run one prompt: ``pixel_values [I, 3, H, W]``, ``input_ids [1, N]``."""
        device = parts_of(self._model).language.embed_tokens.weight.device
        ids = torch.tensor(input_ids, device=device)
        query = torch.full((1,), ids.shape[1] - 1, device=device)
        batch = LlavaBatch(
            pixel_values=torch.tensor(pixel_values, device=device),
            input_ids=ids,
            kind=prompt_kinds(ids, self._model.config.image_token_id),
            alive=torch.ones(ids.shape, device=device),
            query=query,
            labels=torch.full_like(ids, IGNORE),
        )
        recorders = {
            drop.after_layer: RecordingRule(RatioRule.from_plan(drop)) for drop in self._drops
        }
        rules: dict[int, DropRule] = dict(recorders)
        options = DecoderOptions(masks=self._masks, rules=rules)
        cache = DecoderCache()
        output = run_llava(
            self._model,
            batch,
            options,
            cache,
            tower_masks=self._masks,
            selection=self._selection,
        )
        last = output.tokens.states[:, -1]
        kept, scores, margins = [], [], []
        if self._selection is not None and output.selected is not None:
            chosen = output.selected.places[:, : self._selection.dominant].cpu().numpy()
            of_all = output.selected.scores.double().cpu().numpy()
            kept.append(places_in_all(chosen, of_all.shape[1])[0])
            scores.append(of_all.reshape(-1))
            margins.append(math.inf)
        for place, recorder in sorted(recorders.items()):
            kept.append(output.kept[place].index[0].cpu().numpy())
            scores.append(scores_at(recorder, ids.shape[1], output.kept, place))
            margin = output.kept[place].margin
            margins.append(math.inf if margin is None else float(margin[0]))
        logits = self._model.lm_head(last)[0].float().cpu().numpy()
        return Prefilled(logits, kept, scores, cache, margins)

    @torch.no_grad()
    def step(self, token: int, state: DecoderCache) -> tuple[np.ndarray, DecoderCache]:
        """Run one more token; the cache grows in place."""
        device = parts_of(self._model).language.embed_tokens.weight.device
        options = DecoderOptions(masks=self._masks)
        last = torch.tensor([token], device=device)
        logits = answer_step(self._model, last, options, state)[0]
        return logits.float().cpu().numpy(), state


class LlavaTorchReference(TorchReference[LlavaAdapter]):
    """The torch models of a LLaVA's run."""

    @property
    def places(self) -> tuple[Place, ...]:
        """The selection of image tokens, if there is one, and the drop places."""
        first: tuple[Place, ...] = ()
        if self.plan.image_selection is not None:
            first = (("vision", self.slim.shape.vision_used_layers),)
        return first + super().places

    def prepare(self, example: Example) -> Question:
        collator = (self.dense or self.slim).collator
        ids = np.array([collator.short_ids(example.question, example.image)], dtype=np.int64)
        return Question(collator.pixels([example]).numpy(), ids)

    def runner(
        self, adapter: LlavaAdapter, plan: PruningPlan | None, masks: Masks | None
    ) -> TorchRunner:
        assert isinstance(self.artifact, LlavaArtifact)
        eos = self.artifact.manifest.tokens.eos_token_ids
        if plan is None:
            return TorchRunner(adapter.model, eos, (), masks, None)
        return TorchRunner(adapter.model, eos, plan.drops, masks, plan.image_selection)


VERIFICATION = Verification(
    LlavaTorchReference.load, llava_variants, llava_on_graphs, LlavaEngines, canonical_name
)
