"""Manifests that no export wrote, for what is decided from a manifest alone."""

from comp.plan import DropPlan
from export.llava_manifest import DecoderShape, LlavaManifest, SpecialTokens, VisionShape
from export.manifest import ImageProcessing, ImageSize


def artifact_manifest(
    drops: tuple[DropPlan, ...] = (),
    image_tokens: int = 16,
    positions: int = 4096,
    layers: int = 4,
    **changes,
) -> LlavaManifest:
    """A LLaVA of the standard flavour in float16; ``changes`` are fields of the manifest."""
    return LlavaManifest(
        **{
            "family": "llava",
            "flavour": "standard",
            "precision": "float16",
            "opset": 23,
            "model": "made up",
            "method": "comp" if drops else None,
            "rate": 0.5 if drops else 0.0,
            "dense": not drops,
            "decoder": DecoderShape(
                num_layers=layers,
                hidden_size=64,
                head_dim=16,
                num_attention_heads=(4,) * layers,
                num_key_value_heads=(2,) * layers,
                intermediate_size=(48,) * layers,
                vocab_size=60,
                max_position_embeddings=positions,
                drops=drops,
            ),
            "vision": VisionShape(image_size=56, patch_size=14, image_tokens=image_tokens),
            "image_processor": ImageProcessing(
                size=ImageSize(shortest_edge=56), image_mean=(0.5,) * 3, image_std=(0.5,) * 3
            ),
            "tokens": SpecialTokens(
                image_token="<image>",
                image_token_id=4,
                bos_token_id=1,
                eos_token_ids=(2,),
                pad_token_id=0,
                add_bos=True,
            ),
            "prompt_template": "USER: <image>\n{prompt} ASSISTANT:",
            "macs": None,
            "params": 1,
            "versions": {},
            "files": (),
        }
        | changes
    )
