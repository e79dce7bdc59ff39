"""Inputs and outputs of the graphs of a CLIP or a BLIP, by what its manifest says."""

from export.artifact.encoder_manifest import EncoderManifest

STATES = "encoder_hidden_states"


DECODER_MODEL = "decoder_model"


KINDS = ("key", "value")


Dims = tuple[int | str, ...]


Inputs = dict[str, Dims]


def encoder_inputs(manifest: EncoderManifest) -> dict[str, Inputs]:
    """Dimensions of the inputs of each graph of an artifact."""
    side = manifest.vision.image_size
    ids: Inputs = {"input_ids": ("texts", "length")}
    states: Dims = ("texts", manifest.image_tokens, manifest.vision.hidden_size)
    pair = {f"{STATES}.{number}": states for number in range(_images(manifest) or 1)}
    looking = ids | (pair if manifest.task == "statement" else {STATES: states})
    known: dict[str, Inputs] = {
        "vision_model": {"pixel_values": ("images", 3, side, side)},
        "text_encoder": looking,
        "itm_model": looking,
        "text_model": ids,
        "cross_kv": {STATES: ("batch", *_looked_at(manifest))},
        DECODER_MODEL: {"input_ids": ("batch", "sequence")} | _caches(manifest),
    }
    return {name: dims for name, dims in known.items() if f"{name}.onnx" in manifest.graphs}


def encoder_outputs(manifest: EncoderManifest) -> dict[str, Inputs]:
    """Dimensions of the outputs of each graph of an artifact, those of kept places left out."""
    seen: Inputs = {}
    if manifest.family == "blip":
        seen["last_hidden_state"] = ("images", manifest.image_tokens, manifest.vision.hidden_size)
    if manifest.task == "retrieval":
        seen["image_embeds"] = ("images", "width")
    judged: Inputs = {"logits": ("texts", 2)}
    read: Inputs = {"last_hidden_state": ("texts", "left", manifest.text.hidden_size)}
    known: dict[str, Inputs] = {
        "vision_model": seen,
        "text_encoder": judged if manifest.task == "statement" else read,
        "itm_model": judged,
        "text_model": {"text_embeds": ("texts", "width")},
        "cross_kv": {n: dims for n, dims in _caches(manifest).items() if n.startswith("cross.")},
        DECODER_MODEL: _said(manifest),
    }
    return {name: dims for name, dims in known.items() if f"{name}.onnx" in manifest.graphs}


def _looked_at(manifest: EncoderManifest) -> Dims:
    """What a decoder looks at: tokens and width of a question that was read, or of an image."""
    if manifest.task == "caption":
        return manifest.image_tokens, manifest.vision.hidden_size
    return "cross_tokens", manifest.text.hidden_size


def _caches(manifest: EncoderManifest) -> Inputs:
    """Keys and values of past tokens, and of what the decoder looks at."""
    decoder = manifest.decoder
    if decoder is None:
        return {}
    looked = _looked_at(manifest)[0]
    found: Inputs = {}
    for name, counts, length in (
        ("past_key_values", decoder.num_attention_heads, "past"),
        ("cross", decoder.num_cross_attention_heads, looked),
    ):
        for layer, heads in enumerate(counts):
            dims: Dims = ("batch", heads, length, decoder.head_dim)
            found |= {f"{name}.{layer}.{kind}": dims for kind in KINDS}
    return found


def _said(manifest: EncoderManifest) -> Inputs:
    """Logits, and keys and values of past and present tokens."""
    if manifest.decoder is None:
        return {}
    found: Inputs = {"logits": ("batch", "last", manifest.decoder.vocab_size)}
    return found | {
        name.replace("past_key_values.", "present."): dims
        for name, dims in _caches(manifest).items()
        if name.startswith("past_key_values.")
    }


def _images(manifest: EncoderManifest) -> int | None:
    """Images of one request; none where there may be any number."""
    return {"retrieval": None, "statement": 2}.get(manifest.task, 1)
