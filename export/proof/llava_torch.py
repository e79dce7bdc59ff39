"""Verify a LLaVA: the masked, slim and dense torch models, run like an artifact.

They run in ``comp``'s own decoder, so that the scores of drops can be recorded.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration

from comp.checkpoints.llava_shape import ModelShape
from comp.checkpoints.model_size import is_streamed
from comp.checkpoints.tensor_names import canonical_name
from comp.data.example import Example
from comp.errors import CompExportError
from comp.families.llava.adapter import LlavaAdapter
from comp.families.llava.decoder import DecoderCache, DecoderOptions
from comp.families.llava.forward import IGNORE, LlavaBatch, answer_step, prompt_kinds, run_llava
from comp.families.loading import load_adapter
from comp.masks import Masks
from comp.plan import DropPlan, ImageSelection, Place, PruningPlan
from comp.tokens.drop_rules import DropRule, RatioRule
from export.artifact.llava_manifest import LlavaArtifact
from export.proof.compare import Answered, Greedy
from export.proof.families import Verification
from export.proof.llava_prompts import Prefilled, PromptRunner, Question, places_in_all
from export.proof.llava_runtimes import LlavaEngines, llava_on_graphs, llava_variants
from export.proof.masked_torch import RecordingRule, fill_kept, masks_of


class TorchRunner(PromptRunner):
    """A LLaVA with optional masks, drops and selection of image tokens."""

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        eos: tuple[int, ...],
        drops: tuple[DropPlan, ...] = (),
        masks: Masks | None = None,
        selection: ImageSelection | None = None,
    ) -> None:
        self._model = model.eval()
        self._selection = selection
        sizes = ModelShape.from_config(model.config.to_dict())
        self.image = (model.config.image_token_id, sizes.selecting(selection).image_tokens)
        self._eos = eos
        self._drops = drops
        self._masks = masks

    @torch.no_grad()
    def prefill(self, pixel_values: np.ndarray, input_ids: np.ndarray) -> Prefilled:
        """Run one prompt: ``pixel_values [I, 3, H, W]``, ``input_ids [1, N]``."""
        device = self._model.model.language_model.embed_tokens.weight.device
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
        present = np.arange(ids.shape[1])
        kept, scores, margins = [], [], []
        if self._selection is not None and output.selected is not None:
            chosen = output.selected.places[:, : self._selection.dominant].cpu().numpy()
            of_all = output.selected.scores.double().cpu().numpy()
            kept.append(places_in_all(chosen, of_all.shape[1])[0])
            scores.append(of_all.reshape(-1))
            margins.append(math.inf)
        for place, recorder in sorted(recorders.items()):
            row = np.full(ids.shape[1], np.nan)
            row[present] = recorder.scores[0][0].double().cpu().numpy()
            present = output.kept[place].index[0].cpu().numpy()
            kept.append(present)
            scores.append(row)
            margin = output.kept[place].margin
            margins.append(math.inf if margin is None else float(margin[0]))
        logits = self._model.lm_head(last)[0].float().cpu().numpy()
        state = (cache, DecoderOptions(masks=self._masks))
        return Prefilled(logits, kept, scores, state, margins)

    @torch.no_grad()
    def decode(self, prefilled: Prefilled, max_new_tokens: int) -> Greedy:
        """Greedy tokens after a prefill, including EOS."""
        cache, options = prefilled.state
        device = self._model.model.language_model.embed_tokens.weight.device
        text = Greedy()
        last = text.add(prefilled.logits)
        while len(text.tokens) < max_new_tokens and last not in self._eos:
            token = torch.tensor([last], device=device)
            logits = answer_step(self._model, token, options, cache)[0]
            last = text.add(logits.float().cpu().numpy())
        return text


@dataclass(frozen=True)
class LlavaTorchReference:
    """The torch models of a LLaVA's run, on one device (see ``export.proof.interface.TorchReference``)."""

    dense: LlavaAdapter | None
    slim: LlavaAdapter
    plan: PruningPlan
    eos: tuple[int, ...]

    @classmethod
    def load(
        cls, dense: Path | None, slim: Path, plan: PruningPlan, artifact: LlavaArtifact, device: str
    ) -> "LlavaTorchReference":
        """Load both checkpoints to run in float32; ``artifact`` gives the stop tokens.

        On a CPU the decoder of a large model is streamed from its files.
        """
        eos = artifact.manifest.tokens.eos_token_ids
        before = None if dense is None else _llava(dense, device)
        return cls(before, _llava(slim, device), plan, eos)

    @property
    def places(self) -> tuple[Place, ...]:
        first: tuple[Place, ...] = ()
        if self.plan.image_selection is not None:
            first = (("vision", self.slim.shape.vision_used_layers),)
        return first + tuple(drop.place for drop in self.plan.drops)

    def prepare(self, example: Example) -> Question:
        collator = (self.dense or self.slim).collator
        ids = np.array([collator.short_ids(example.question)], dtype=np.int64)
        return Question(collator.pixels([example]).numpy(), ids)

    def dense_runner(self) -> TorchRunner:
        """The dense model. Not valid after ``masked_runner``."""
        assert self.dense is not None
        return TorchRunner(self.dense.model, self.eos)

    def slim_runner(self) -> TorchRunner:
        plan = self.plan
        return TorchRunner(self.slim.model, self.eos, plan.drops, selection=plan.image_selection)

    def masked_runner(self) -> TorchRunner:
        """The dense model with the slim model's weights in their places and everything else masked."""
        assert self.dense is not None
        fill_kept(self.dense, self.slim, self.dense.cuts(self.plan))
        masks = masks_of(self.dense, self.plan)
        plan = self.plan
        return TorchRunner(self.dense.model, self.eos, plan.drops, masks, plan.image_selection)

    def conclude(self, answers: list[Answered]) -> list[Answered]:
        return answers


def _llava(directory: Path, device: str) -> LlavaAdapter:
    adapter = load_adapter(directory, device, streamed=device == "cpu" and is_streamed(directory))
    if not isinstance(adapter, LlavaAdapter):
        raise CompExportError(f"{directory} is no LLaVA, and the plan is of one: pass another run")
    return adapter


VERIFICATION = Verification(
    LlavaTorchReference.load, llava_variants, llava_on_graphs, LlavaEngines, canonical_name
)
