"""Manifests without an export, for decisions that need only a manifest."""

import hashlib

from comp.checkpoints.image_settings import ImageProcessing, ImageSize
from comp.plan import DropPlan
from export.artifact.encoder_manifest import DecoderInfo, EncoderManifest, TextInfo, TowerInfo
from export.artifact.encoder_ports import encoder_inputs
from export.artifact.llava_manifest import DecoderShape, LlavaManifest, SpecialTokens, VisionShape
from export.artifact.llava_ports import llava_inputs
from export.artifact.manifest import FileEntry
from export.tensorrt.build import encoder_profiles as encoder
from export.tensorrt.build import llava_profiles as llava
from export.tensorrt.manifest import EngineEntry, EngineManifest, EngineProfile


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


ENCODER_GRAPHS = {
    "question": ("vision_model", "text_encoder", "cross_kv", "decoder_model"),
    "caption": ("vision_model", "cross_kv", "decoder_model"),
    "statement": ("vision_model", "text_encoder"),
    "retrieval": ("vision_model", "text_model", "itm_model"),
}


def encoder_manifest(
    task: str, drops: tuple[DropPlan, ...] = (), positions: int = 64, tokens: int = 17
) -> EncoderManifest:
    """A BLIP of the standard flavour in float16, two layers each."""
    decoder = DecoderInfo(
        head_dim=16,
        num_attention_heads=(4, 1),
        num_cross_attention_heads=(2, 3),
        vocab_size=60,
        max_position_embeddings=positions,
        bos_token_id=1,
        eos_token_id=2,
    )
    return EncoderManifest(
        family="blip",
        task=task,
        flavour="standard",
        precision="float16",
        opset=23,
        model="made up",
        method=None,
        rate=0.0,
        dense=not drops,
        image_processor=ImageProcessing(
            size=ImageSize(shortest_edge=56), image_mean=(0.5,) * 3, image_std=(0.5,) * 3
        ),
        macs=None,
        params=1,
        versions={},
        files=tuple(
            FileEntry(name=f"{name}.onnx", bytes=1, sha256="0" * 64)
            for name in ENCODER_GRAPHS[task]
        ),
        vision=TowerInfo(image_size=56, patch_size=14, tokens=tokens, hidden_size=48),
        text=TextInfo(max_position_embeddings=positions, hidden_size=64),
        decoder=decoder if "decoder_model" in ENCODER_GRAPHS[task] else None,
        drops=drops,
    )


def engine_manifest(model: LlavaManifest | EncoderManifest, directory) -> EngineManifest:
    """Of engines for the largest usual request, with files of no meaning in ``directory``."""
    family = llava if isinstance(model, LlavaManifest) else encoder
    limits = family.usual_limits(model)
    entries, files = {}, []

    def write(name: str) -> None:
        (directory / name).write_bytes(name.encode())
        digest = hashlib.sha256(name.encode()).hexdigest()
        files.append(FileEntry(name=name, bytes=len(name), sha256=digest))

    for graph in family.engine_graphs(model, limits):
        ports = (
            llava_inputs(model)[graph.graph]
            if isinstance(model, LlavaManifest)
            else encoder_inputs(model)[graph.name]
        )
        entries[graph.name] = EngineEntry(
            file=f"{graph.name}.engine",
            graph=graph.graph,
            profiles=tuple(
                EngineProfile(
                    name=profile.name,
                    shapes={
                        name: profile.shapes([graph.fixed.get(dim, dim) for dim in dims])
                        for name, dims in ports.items()
                    },
                )
                for profile in graph.profiles
            ),
            blocks=(),
        )
        write(f"{graph.name}.engine")
    write("tokenizer.json")
    return EngineManifest(
        module="tensorrt_rtx",
        module_version="1.7.1",
        compute_capabilities=("8.0", "8.9"),
        weights="embedded",
        limits=limits,
        cache_capacities=family.cache_capacities(model, limits),
        engines=entries,
        artifact=model,
        artifact_directory="onnx-standard-float16",
        files=tuple(files),
    )
