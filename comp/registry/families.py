"""The families of models, one record each."""

from dataclasses import replace

from comp.errors import CompExportError
from comp.registry.family import Family, Teaching

BLIP_MODES = (
    "vision_tokens",
    "language_tokens",
    "vision_parameters",
    "language_parameters",
    "cross_parameters",
)
FAMILIES: list[Family] = []
"""All that is registered, in order (``register_family``)."""


def register_family(family: Family) -> Family:
    """Register a family, for every package.

    Raises:
        CompExportError: its name or one of its model types is taken.
    """
    for known in FAMILIES:
        taken = [name for name in family.model_types if name in known.model_types]
        if known.name == family.name:
            taken.insert(0, family.name)
        if taken:
            raise CompExportError(
                f"the family {known.name} has {taken[0]!r} already: choose another"
            )
    FAMILIES.append(family)
    return family


LLAVA = register_family(
    Family(
        name="llava",
        model_types=("llava", "comp_llava"),
        description="LLaVA: CLIP or SigLIP tower, MLP, and a Llama, Mistral, Qwen2 or Qwen3",
        modes=("vision_tokens", "language_tokens", "language_parameters", "vision_parameters"),
        default_modes=("vision_tokens", "language_tokens", "language_parameters"),
        exports=("slim checkpoint", "onnx", "tensorrt"),
        # The tower knows pictures in general, and short training sees few.
        teaching=Teaching("both", tower=0.1),
        reads_image_tokens=True,
        streams=True,
        prunes_again=True,
        image_processor="LlavaImageProcessor",
        processor="LlavaProcessor",
        slim_architecture="CompLlavaForConditionalGeneration",
        slim={"transformers.models.llava.modeling_llava": "comp.families.llava.slim"},
        checkpoint="comp.families.llava.checkpoint:FORMAT",
        shape="comp.checkpoints.llava_shape:ModelShape",
        tensor_name="comp.checkpoints.tensor_names:canonical_name",
        latency="comp.latency.request:LLAVA",
        blocks="export.latency.llava_blocks:LlavaBlocks.of",
        export="export.families.llava.artifact:llava_artifact",
        manifest="export.artifact.llava_manifest:LlavaManifest",
        artifact="export.artifact.llava_manifest:LlavaArtifact",
        verification="export.proof.llava_torch:VERIFICATION",
        engine_profiles="export.tensorrt.build.llava_profiles",
        engines={"question": "serve.engines.llava:Engine"},
        auto_models={"question": "AutoModelForImageTextToText"},
    )
)
for _name, _title in (("smolvlm", "SmolVLM"), ("idefics3", "Idefics3")):
    register_family(
        replace(
            LLAVA,
            name=_name,
            model_types=(_name, f"comp_{_name}"),
            description=f"{_title}: tiles, SigLIP tower, pixel shuffle, Llama language model",
            image_processor=f"{_title}ImageProcessor",
            # SmolVLM's own wants torchvision for videos; this one writes the same tokens for pictures.
            processor="Idefics3Processor",
            load_processor="comp.families.smolvlm.processor:TiledProcessor.from_pretrained",
            slim_architecture=f"Comp{_title}ForConditionalGeneration",
            prefixes=(
                ("text_model.", "language_model."),
                ("vision_model.", "vision_tower."),
                ("connector.", "multi_modal_projector."),
            ),
            slim={f"transformers.models.{_name}.modeling_{_name}": "comp.families.smolvlm.slim"},
            checkpoint="comp.families.smolvlm.checkpoint:FORMAT",
            latency=None,
            blocks=None,
        )
    )
register_family(
    replace(
        LLAVA,
        name="internvl",
        model_types=("internvl", "comp_internvl"),
        description="InternVL: tiles, InternViT, pixel shuffle, Qwen2 or Qwen3 language model",
        image_processor="GotOcr2ImageProcessor",
        processor="InternVLProcessor",
        # AutoProcessor wants torchvision for videos.
        load_processor="comp.families.internvl.processor:PictureProcessor.from_pretrained",
        slim_architecture="CompInternVLForConditionalGeneration",
        ties=True,
        tower_names=(
            ("embeddings.cls_token", "embeddings.class_embedding"),
            ("embeddings.position_embeddings", "embeddings.position_embedding.weight"),
            ("embeddings.patch_embeddings.projection.", "embeddings.patch_embedding."),
            ("encoder.layer.", "encoder.layers."),
            (".attention.projection_layer.", ".self_attn.out_proj."),
            (".attention.", ".self_attn."),
            (".layernorm_before.", ".layer_norm1."),
            (".layernorm_after.", ".layer_norm2."),
        ),
        slim={"transformers.models.internvl.modeling_internvl": "comp.families.internvl.slim"},
        checkpoint="comp.families.internvl.checkpoint:FORMAT",
        latency=None,
        blocks=None,
    )
)
register_family(
    Family(
        name="clip",
        model_types=("clip", "comp_clip"),
        description="CLIP: image and text towers, compared by their embeddings",
        modes=("vision_tokens", "language_tokens", "vision_parameters", "language_parameters"),
        default_modes=(
            "vision_tokens",
            "language_tokens",
            "vision_parameters",
            "language_parameters",
        ),
        exports=("slim checkpoint", "onnx", "tensorrt"),
        teaching=Teaching("both"),
        race=4,
        merges_in_proportion=True,
        image_processor="CLIPImageProcessor",
        slim={"transformers.models.clip.modeling_clip": "comp.families.clip.slim"},
        checkpoint="comp.families.clip.checkpoint:FORMAT",
        shape="comp.checkpoints.encoder_shape:EncoderShape",
        latency="comp.latency.request:CLIP",
        blocks="export.latency.clip_blocks:ClipBlocks.of",
        export="export.families.clip.artifact:clip_artifact",
        manifest="export.artifact.encoder_manifest:EncoderManifest",
        artifact="export.artifact.encoder_manifest:EncoderArtifact",
        verification="export.proof.clip:VERIFICATION",
        engine_profiles="export.tensorrt.build.encoder_profiles",
        engines={"retrieval": "serve.engines.retriever:Retriever"},
        auto_models={"retrieval": "AutoModel"},
    )
)
register_family(
    Family(
        name="blip",
        model_types=("blip", "comp_blip", "comp_blip_nlvr"),
        description="BLIP for captions, questions, retrieval, or statements about two images (NLVR2)",
        modes=BLIP_MODES,
        default_modes=BLIP_MODES,
        exports=("slim checkpoint", "onnx", "tensorrt"),
        teaching=Teaching("none"),
        # Whether a statement is true is the parity of what it says and of two pictures: labels alone teach
        # nothing back, and the dense model's features do.
        taught={"BlipForNlvr2": Teaching("features", weight=10.0, recover_lr=1e-3)},
        lacks={"BlipForConditionalGeneration": ("language_tokens",)},
        image_processor="BlipImageProcessor",
        slim={
            "transformers.models.blip.modeling_blip": "comp.families.blip.slim",
            "transformers.models.blip.modeling_blip_text": "comp.families.blip.nlvr",
        },
        checkpoint="comp.families.blip.checkpoint:FORMAT",
        shape="comp.checkpoints.encoder_shape:EncoderShape",
        export="export.families.blip.artifact:blip_artifact",
        manifest="export.artifact.encoder_manifest:EncoderManifest",
        artifact="export.artifact.encoder_manifest:EncoderArtifact",
        verification="export.proof.blip_torch:VERIFICATION",
        engine_profiles="export.tensorrt.build.encoder_profiles",
        engines={
            "question": "serve.engines.blip_generator:BlipGenerator",
            "caption": "serve.engines.blip_generator:BlipGenerator",
            "statement": "serve.engines.blip_judge:Judge",
            "retrieval": "serve.engines.blip_retriever:BlipRetriever",
        },
        auto_models={
            "caption": "AutoModelForImageTextToText",
            "question": "AutoModelForVisualQuestionAnswering",
            "statement": "AutoModel",  # registered by this package: transformers has no such class
        },
    )
)


def family_of(model_type: str | None) -> Family | None:
    """Return the family of a configuration's ``model_type``; ``None`` if no family has it."""
    return next((family for family in FAMILIES if model_type in family.model_types), None)


def family_called(name: str) -> Family | None:
    """Return the family of this name; ``None`` if there is none."""
    return next((family for family in FAMILIES if family.name == name), None)
