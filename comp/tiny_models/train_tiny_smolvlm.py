"""Train ``tiny-smolvlm``: ``python -m comp.tiny_models.train_tiny_smolvlm --out DIR``.

It starts from tiny-llava (``comp.tiny_models.tiny_smolvlm.start_from``). First the tower and the connector
alone: every image token is trained to be the word for what covers it. Then the whole model on questions
about pictures of five sizes. The run can be interrupted and continued with the same command; it loses at
most ``--save-every`` steps.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, SmolVLMForConditionalGeneration

from comp.checkpoints.locate import resolve_model
from comp.data.emoji_scenes.questions import KINDS
from comp.tiny_models import tiny_llava, tiny_smolvlm
from comp.tiny_models.picture_layout import TiledPicture, WholePicture
from comp.tiny_models.question_training import Recipe, Trainee, run_command, train
from comp.tiny_models.scene_batches import Curriculum, SceneBatches
from comp.tiny_models.tiny_tokenizer import build_tokenizer
from comp.tiny_models.train_tiny_llava import COUNTING_LAST, SLOWEST_LAST, LlavaTrainee

RANKED_ON = 32  # scenes with a dozen questions each


@dataclass(frozen=True)
class SmolVLMRecipe(Recipe):
    """The recipe of tiny-smolvlm."""

    dense_steps: int = 300
    counting_step: int = 1200
    ends: tuple[int, ...] = (2400,)
    learning_rate: float = 1e-3

    def curricula(self) -> list[tuple[int, Curriculum]]:
        everything = dict.fromkeys(KINDS, 1.0)
        return [
            (0, Curriculum(7, everything | SLOWEST_LAST)),
            (self.counting_step, Curriculum(7, everything | COUNTING_LAST)),
        ]


class SmolVLMTrainee(Trainee):
    """tiny-smolvlm in training."""

    @property
    def language(self) -> Any:
        return self.model.model.text_model

    def words(self, dense_only: bool) -> Tensor:
        """Return the words; they are tiny-llava's until questions are asked."""
        weight: Tensor = self.language.embed_tokens.weight
        return weight.detach() if dense_only else weight

    def patches(self, pixels: Tensor) -> Tensor:
        """Return the image tokens ``[B, N, d]`` of tiles ``[B, T, 112, 112, 3] uint8``."""
        model = self.model.model
        scaled = (pixels.flatten(0, 1).float() / 127.5 - 1).permute(0, 3, 1, 2)
        tower = model.vision_model
        mask = torch.ones(
            len(scaled), tiny_smolvlm.GRID * 2, tiny_smolvlm.GRID * 2, dtype=torch.bool
        )
        states = tower.embeddings(pixel_values=scaled, patch_attention_mask=mask)
        states = tower.post_layernorm(tower.encoder(states, None).last_hidden_state)
        return model.connector(states).unflatten(0, pixels.shape[:2]).flatten(1, 2)


def new_model(ranked_on: int = RANKED_ON) -> SmolVLMForConditionalGeneration:
    """Return the model before training, with what it takes from tiny-llava, ranked on this many scenes."""
    model = SmolVLMForConditionalGeneration(
        tiny_smolvlm.tiny_smolvlm_config(tiny_smolvlm.smolvlm_tokenizer())
    )
    source = LlavaForConditionalGeneration.from_pretrained(
        resolve_model("tiny-llava"), dtype=torch.float32, use_safetensors=True
    ).eval()
    layout = WholePicture(build_tokenizer(), tiny_llava.GRID, tiny_llava.PATCH_SIZE)
    trainee = LlavaTrainee(source, layout.image_token_id)
    curricula = SmolVLMRecipe().curricula()
    batch = SceneBatches(layout, curricula, ranked_on, 160, 0, 1, seed=1).batch(0)
    tiny_smolvlm.start_from(model, source, lambda: trainee(batch, dense_only=False))
    return model


def train_tiny_smolvlm(out: Path, recipe: SmolVLMRecipe, save_every: int, threads: int) -> None:
    """Run the recipe in ``out``, or continue it, and write the model in bfloat16 with its processor."""
    torch.manual_seed(recipe.seed)
    tokenizer = tiny_smolvlm.smolvlm_tokenizer()
    model = new_model()
    layout = TiledPicture(tokenizer, tiny_smolvlm.GRID, tiny_smolvlm.TILES, tiny_smolvlm.RESAMPLE)
    trainee = SmolVLMTrainee(model, layout.image_token_id)
    train(out, trainee, layout, recipe, save_every, threads)
    model.model.text_model.set_attn_implementation("sdpa")
    model.to(torch.bfloat16).save_pretrained(out / "model")
    tiny_smolvlm.tiny_smolvlm_processor(tokenizer).save_pretrained(out / "model")


if __name__ == "__main__":
    run_command(__doc__, SmolVLMRecipe, train_tiny_smolvlm)
