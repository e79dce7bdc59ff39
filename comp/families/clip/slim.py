"""Slim CLIP as a ``transformers`` model: cut blocks and token dropping in the architecture."""

from torch import Tensor
from transformers import AutoConfig, AutoModel, CLIPConfig, CLIPModel
from transformers.models.clip.modeling_clip import CLIPOutput

from comp.checkpoints.pruning_entry import PruningEntry
from comp.families.clip.forward import Embedded, blocks_of, embed_images, embed_texts
from comp.families.encoder.forward import EncoderOptions
from comp.plan import DropPlan, Part
from comp.tokens.dictionary import attach_dictionary
from comp.tokens.drop_rules import rules_from_plan

SLIM_CLIP = "comp_clip"


class CompCLIPConfig(CLIPConfig):
    """A CLIP config with ``pruning``: head counts and widths of both towers by layer, and the drops.

    See ``comp.checkpoints.pruning_entry``.
    """

    model_type = SLIM_CLIP
    pruning: dict | None = None


def clip_options(drops: tuple[DropPlan, ...], part: Part) -> EncoderOptions:
    """Options of a slim CLIP's tower."""
    rules = rules_from_plan(tuple(drop for drop in drops if drop.part == part))
    return EncoderOptions(rules={layer: rule for (_, layer), rule in rules.items()})


class CompCLIPModel(CLIPModel):
    """CLIP with cut projections and tokens dropped in both towers."""

    config: CompCLIPConfig

    def __init__(self, config: CompCLIPConfig) -> None:
        super().__init__(config)
        pruning = PruningEntry.of_config(config)
        for tower, sizes in (
            (self.vision_model, pruning.vision),
            (self.text_model, pruning.language),
        ):
            for block, left in zip(blocks_of(tower), sizes.blocks, strict=True) if sizes else ():
                block.resize(*left)
        attach_dictionary(self, self.drops)

    @property
    def drops(self) -> tuple[DropPlan, ...]:
        """Token drops of the model."""
        return PruningEntry.of_config(self.config).drops or ()

    def embedded_images(self, pixel_values: Tensor) -> Embedded:
        """Return normalised embeddings of images, and the tokens that stayed."""
        return embed_images(self, pixel_values, clip_options(self.drops, "vision"))

    def embedded_texts(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Embedded:
        """Return normalised embeddings of texts, and the tokens that stayed."""
        mask = input_ids.new_ones(input_ids.shape) if attention_mask is None else attention_mask
        return embed_texts(self, input_ids, mask, clip_options(self.drops, "language"))

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        **_unused: object,
    ) -> CLIPOutput:
        """As ``CLIPModel``: scaled products of all images with all texts."""
        images = self.embedded_images(pixel_values).embeds
        texts = self.embedded_texts(input_ids, attention_mask).embeds
        per_text = texts @ images.T * self.logit_scale.exp()
        return CLIPOutput(
            logits_per_image=per_text.T,
            logits_per_text=per_text,
            image_embeds=images,
            text_embeds=texts,
        )


AutoConfig.register(SLIM_CLIP, CompCLIPConfig, exist_ok=True)
AutoModel.register(CompCLIPConfig, CompCLIPModel, exist_ok=True)
