"""Inputs and outputs of the graphs of a CLIP or a BLIP, derived from its manifest."""

from export.artifact.caches import CROSS, PAST, PRESENT
from export.artifact.encoder_manifest import EncoderManifest

STATES = "encoder_hidden_states"  # the input of cross-attention
DECODER_MODEL = "decoder_model"
KINDS = ("key", "value")
Dims = tuple[int | str, ...]
Inputs = dict[str, Dims]


def encoder_inputs(manifest: EncoderManifest) -> dict[str, Inputs]:
    """Dimensions of the inputs of each graph of an artifact."""
    side = manifest.vision.image_size
    ids: Inputs = {"input_ids": ("texts", "length")}
    states: Dims = ("texts", manifest.image_tokens, manifest.vision.hidden_size)
    pair = {f"{STATES}.{number}": states for number in range(images_of(manifest) or 1)}
    text_and_states = ids | (pair if manifest.task == "statement" else {STATES: states})
    ports: dict[str, Inputs] = {
        "vision_model": {"pixel_values": ("images", 3, side, side)},
        "text_encoder": text_and_states,
        "itm_model": text_and_states,
        "text_model": ids,
        "cross_kv": {STATES: ("batch", *_cross_dims(manifest))},
        DECODER_MODEL: {"input_ids": ("batch", "sequence")} | _caches(manifest),
    }
    return {name: dims for name, dims in ports.items() if f"{name}.onnx" in manifest.graphs}


def encoder_outputs(manifest: EncoderManifest) -> dict[str, Inputs]:
    """Dimensions of the outputs of each graph of an artifact, without those of kept positions."""
    image_outputs: Inputs = {}
    if manifest.family == "blip":
        image_outputs["last_hidden_state"] = (
            "images",
            manifest.image_tokens,
            manifest.vision.hidden_size,
        )
    if manifest.task == "retrieval":
        image_outputs["image_embeds"] = ("images", "width")
    logits: Inputs = {"logits": ("texts", 2)}
    text_states: Inputs = {"last_hidden_state": ("texts", "left", manifest.text.hidden_size)}
    ports: dict[str, Inputs] = {
        "vision_model": image_outputs,
        "text_encoder": logits if manifest.task == "statement" else text_states,
        "itm_model": logits,
        "text_model": {"text_embeds": ("texts", "width")},
        "cross_kv": {n: dims for n, dims in _caches(manifest).items() if n.startswith(CROSS)},
        DECODER_MODEL: _decoder_outputs(manifest),
    }
    return {name: dims for name, dims in ports.items() if f"{name}.onnx" in manifest.graphs}


def _cross_dims(manifest: EncoderManifest) -> Dims:
    """Tokens and width of what the decoder attends to: the encoded question, or the image."""
    if manifest.task == "caption":
        return manifest.image_tokens, manifest.vision.hidden_size
    return "cross_tokens", manifest.text.hidden_size


def _caches(manifest: EncoderManifest) -> Inputs:
    """Keys and values of past tokens, and of the cross-attention."""
    decoder = manifest.decoder
    if decoder is None:
        return {}
    cross_length = _cross_dims(manifest)[0]
    caches: Inputs = {}
    for prefix, counts, length in (
        (PAST, decoder.num_attention_heads, "past"),
        (CROSS, decoder.num_cross_attention_heads, cross_length),
    ):
        for layer, heads in enumerate(counts):
            dims: Dims = ("batch", heads, length, decoder.head_dim)
            caches |= {f"{prefix}{layer}.{kind}": dims for kind in KINDS}
    return caches


def _decoder_outputs(manifest: EncoderManifest) -> Inputs:
    """Logits, and keys and values of past and present tokens."""
    if manifest.decoder is None:
        return {}
    logits: Inputs = {"logits": ("batch", "last", manifest.decoder.vocab_size)}
    return logits | {
        name.replace(PAST, PRESENT): dims
        for name, dims in _caches(manifest).items()
        if name.startswith(PAST)
    }


def images_of(manifest: EncoderManifest) -> int | None:
    """Images of one request; ``None`` if their number is free."""
    return {"retrieval": None, "statement": 2}.get(manifest.task, 1)
