"""Inputs and outputs of the graphs of a LLaVA, derived from its manifest."""

from export.artifact.caches import CACHE_LENGTHS, LOGITS, PAST, PRESENT, segments_of
from export.artifact.llava_manifest import IN_PLACE, KEPT, LlavaManifest

KEEP_FACTOR = "keep_factor"
OPTIONAL = (KEEP_FACTOR, CACHE_LENGTHS)
Dims = tuple[int | str, ...]
Ports = dict[str, Dims]


def llava_inputs(manifest: LlavaManifest) -> dict[str, Ports]:
    """Dimensions of the inputs of each graph by its file's name; names stand for any size."""
    vision, shape = manifest.vision, manifest.decoder
    side = vision.image_size
    decoder: Ports = {
        "inputs_embeds": ("batch", "sequence", shape.hidden_size),
        "position_ids": ("batch", "sequence"),
        "vision_positions": ("batch", "vision_tokens"),
        "text_positions": ("batch", "text_tokens"),
    } | _caches(manifest, PAST, "past")
    ports: dict[str, Ports] = {
        "vision_encoder.onnx": {"pixel_values": ("images", vision.num_channels, side, side)},
        "embed_tokens.onnx": {"input_ids": ("batch", "sequence")},
        "decoder_model.onnx": decoder,
    }
    if IN_PLACE in manifest.graphs:
        ports[IN_PLACE] = decoder | _caches(manifest, PAST, "capacity")
    return ports


def llava_outputs(manifest: LlavaManifest) -> dict[str, Ports]:
    """Dimensions of the outputs, as ``llava_inputs``."""
    vision, shape = manifest.vision, manifest.decoder
    vision_outputs: Ports = {"image_features": ("images", vision.image_tokens, shape.hidden_size)}
    if vision.selection is not None:
        vision_outputs[KEPT] = ("images", vision.selection.dominant)
    decoder_outputs: Ports = {LOGITS: ("batch", 1, shape.vocab_size)}
    decoder_outputs |= {f"kept.{drop.after_layer}": ("batch", "kept") for drop in shape.drops}
    decoder_outputs |= _caches(manifest, PRESENT, "total")
    ports: dict[str, Ports] = {
        "vision_encoder.onnx": vision_outputs,
        "embed_tokens.onnx": {"inputs_embeds": ("batch", "sequence", shape.hidden_size)},
        "decoder_model.onnx": decoder_outputs,
    }
    return ports | ({IN_PLACE: decoder_outputs} if IN_PLACE in manifest.graphs else {})


def _caches(manifest: LlavaManifest, prefix: str, length: str) -> Ports:
    """Keys and values of every block; blocks of a segment share the name of a length."""
    shape = manifest.decoder
    layers = zip(shape.num_key_value_heads, segments_of(shape), strict=True)
    return {
        f"{prefix}{layer}.{kind}": ("batch", heads, f"{length}_{segment}", shape.head_dim)
        for layer, (heads, segment) in enumerate(layers)
        for kind in ("key", "value")
    }
