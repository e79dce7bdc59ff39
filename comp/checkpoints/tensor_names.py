"""What the tensors of a LLaVA are called, whatever names they were saved under; needs no torch."""


def canonical_name(stored: str) -> str:
    """The name transformers 5 gives a tensor in memory.

    The hub's ``language_model.model.layers.0…`` and ``vision_tower.vision_model.encoder…``, and the
    mixture that transformers 5 saves, become ``model.language_model.layers.0…`` and
    ``model.vision_tower.encoder…``; the head is ``lm_head.weight``.
    """
    name = stored.removeprefix("model.")
    for old, new in (
        ("language_model.lm_head.", "lm_head."),
        ("language_model.model.", "language_model."),
        ("vision_tower.vision_model.", "vision_tower."),
    ):
        if name.startswith(old):
            name = new + name[len(old) :]
    return name if name.startswith("lm_head.") else f"model.{name}"
