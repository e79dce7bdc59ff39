"""Train ``tiny-llava`` from scratch: ``python -m comp.tiny_models.train_tiny_llava --out DIR``.

Two stages in one run. First the vision tower alone, with dense supervision: every patch predicts the word
for the thing that covers it. Then the whole model on questions, a dozen packed after each image, with a
curriculum from small scenes and questions that bind a name to a place, up to everything. The run can be
interrupted and continued with the same command; it loses at most ``--save-every`` steps.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from comp.data.emoji_scenes.questions import KINDS
from comp.tiny_models.picture_layout import WholePicture
from comp.tiny_models.question_training import Recipe, Trainee, run_command, train
from comp.tiny_models.scene_batches import Curriculum
from comp.tiny_models.tiny_llava import (
    GRID,
    PATCH_SIZE,
    initialise,
    tiny_llava_config,
    tiny_llava_processor,
)
from comp.tiny_models.tiny_tokenizer import build_tokenizer

EASY = {"where": 2.0, "at": 2.0, "exists": 1.0, "extreme": 1.0, "relation": 1.0, "list": 0.5}
BINDING_FIRST = {"where": 1.5, "at": 1.5, "exists": 1.5, "relation": 1.5}
SLOWEST_LAST = {"size": 2.0, "count": 2.0, "count_category": 1.5, "odd": 1.5, "list": 1.5}
COUNTING_LAST = {"size": 2.0, "count": 4.0, "count_category": 3.0, "odd": 2.0, "list": 2.0}
REPEATS_LAST = COUNTING_LAST | {"count": 8.0}
MORE_REPEATS = COUNTING_LAST | {"count": 16.0}


@dataclass(frozen=True)
class LlavaRecipe(Recipe):
    """The recipe of tiny-llava."""

    easy_steps: int = 250
    middle_steps: int = 350
    counting_step: int = 2320
    repeats_step: int = 2680
    more_repeats_step: int = 3400
    ends: tuple[int, ...] = (2320, 2680, 3400, 3900)

    def curricula(self) -> list[tuple[int, Curriculum]]:
        everything = dict.fromkeys(KINDS, 1.0)
        easy_end = self.dense_steps + self.easy_steps
        return [
            (0, Curriculum(7, everything)),
            (self.dense_steps, Curriculum(3, EASY)),
            (easy_end, Curriculum(5, everything | BINDING_FIRST)),
            (easy_end + self.middle_steps, Curriculum(7, everything | SLOWEST_LAST)),
            (self.counting_step, Curriculum(7, everything | COUNTING_LAST)),
            (self.repeats_step, Curriculum(7, everything | REPEATS_LAST)),
            (self.more_repeats_step, Curriculum(7, everything | MORE_REPEATS)),
        ]


class LlavaTrainee(Trainee):
    """tiny-llava in training."""

    @property
    def language(self) -> Any:
        return self.model.model.language_model

    def patches(self, pixels: Tensor) -> Tensor:
        """Return the projected patches ``[B, 144, d]`` of ``pixels [B, 168, 168, 3] uint8``."""
        # [B, H, W, 3] -> [B, 3, H, W], with CLIP's mean and deviation
        mean = torch.tensor([0.48145466, 0.4578275, 0.40821073], device=pixels.device)
        deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711], device=pixels.device)
        scaled = ((pixels.float() / 255 - mean) / deviation).permute(0, 3, 1, 2)
        tower = self.model.model.vision_tower
        states = tower.pre_layrnorm(tower.embeddings(scaled))
        states = tower.encoder(inputs_embeds=states).last_hidden_state
        return self.model.model.multi_modal_projector(states[:, 1:])


def train_tiny_llava(out: Path, recipe: LlavaRecipe, save_every: int, threads: int) -> None:
    """Run the recipe in ``out``, or continue it, and write the model."""
    torch.manual_seed(recipe.seed)
    tokenizer = build_tokenizer()
    model = LlavaForConditionalGeneration(tiny_llava_config(tokenizer))
    initialise(model)
    layout = WholePicture(tokenizer, GRID, PATCH_SIZE)
    trainee = LlavaTrainee(model, layout.image_token_id)
    train(out, trainee, layout, recipe, save_every, threads)
    save_model(out / "model", model)


def save_model(directory: Path, model: LlavaForConditionalGeneration) -> None:
    """Write the model in 16-bit floats with its processor, as ``transformers`` reads them."""
    processor = tiny_llava_processor(build_tokenizer())
    model.to(torch.float16).save_pretrained(directory)
    processor.save_pretrained(directory)


if __name__ == "__main__":
    run_command(__doc__, LlavaRecipe, train_tiny_llava)
