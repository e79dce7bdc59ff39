"""What the engine must know of a checkpoint's processor, read without transformers."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from comp.errors import CompExportError
from export.llava_manifest import SpecialTokens
from export.manifest import ImageProcessing, ImageSize

TOKENIZER = "tokenizer.json"
PROMPT = "{prompt}"
# LLaVA-1.5's own template, for checkpoints that were saved before templates were.
DEFAULT_TEMPLATE = "USER: <image>\n{prompt} ASSISTANT:"
SENTINEL = "comp-export-prompt"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def read_image_processing(directory: Path) -> ImageProcessing:
    """The image processor's settings: ``processor_config.json`` or ``preprocessor_config.json``.

    Raises:
        CompExportError: when neither file has them.
    """
    found = _json(directory / "processor_config.json").get("image_processor")
    found = found or _json(directory / "preprocessor_config.json")
    if not found:
        raise CompExportError(
            f"{directory} has no image processor: add preprocessor_config.json or "
            "processor_config.json of the checkpoint"
        )
    size = found.get("size", {"shortest_edge": 224})
    size = {"shortest_edge": size} if isinstance(size, int) else size
    crop = found.get("crop_size")
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    settings = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD} | {
        name: value
        for name, value in found.items()
        if name in ImageProcessing.model_fields and value is not None
    }
    settings["size"] = {name: size[name] for name in ImageSize.model_fields if name in size}
    if crop is not None:
        settings["crop_size"] = {"height": crop["height"], "width": crop["width"]}
    return ImageProcessing.model_validate(settings)


def read_special_tokens(
    directory: Path, config: dict[str, Any], image_token_id: int
) -> SpecialTokens:
    """Ids of special tokens; EOS as ``generate`` would use it.

    Raises:
        CompExportError: no ``tokenizer.json``, or no image token in it.
    """
    path = directory / TOKENIZER
    if not path.is_file():
        raise CompExportError(
            f"{path} is missing: save the checkpoint's fast tokenizer there "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(...))"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise CompExportError(f"{path} is no tokenizer ({error}): download it again") from error
    settings = _json(directory / "tokenizer_config.json")
    generation = _json(directory / "generation_config.json")
    text = config.get("text_config") or {}
    image_token = tokenizer.id_to_token(image_token_id)
    if image_token is None:
        raise CompExportError(
            f"{path} has no token {image_token_id}, the image token of config.json: "
            "take both files from the same checkpoint"
        )

    def token_id(name: str) -> Any:
        token = settings.get(f"{name}_token")
        content = token.get("content") if isinstance(token, dict) else token
        by_name = None if content is None else tokenizer.token_to_id(content)
        for value in (generation.get(f"{name}_token_id"), by_name, text.get(f"{name}_token_id")):
            if value is not None:
                return value
        return None

    eos = token_id("eos")
    if eos is None:
        raise CompExportError(
            f"{directory} names no EOS token: set eos_token_id in generation_config.json"
        )
    bos = token_id("bos")
    return SpecialTokens(
        image_token=image_token,
        image_token_id=image_token_id,
        bos_token_id=bos,
        eos_token_ids=tuple(eos) if isinstance(eos, list) else (eos,),
        pad_token_id=token_id("pad"),
        add_bos=bos is not None and tokenizer.encode("").ids[:1] == [bos],
    )


def read_prompt_template(directory: Path, tokens: SpecialTokens) -> str:
    """The chat template rendered for one image and ``{prompt}``, generation prompt included.

    A leading BOS is left to the tokenizer when that adds one.

    Raises:
        CompExportError: when the checkpoint's template cannot be rendered so.
    """
    template = _find_template(directory)
    if template is None:
        return DEFAULT_TEMPLATE.replace("<image>", tokens.image_token)
    settings = _json(directory / "tokenizer_config.json")
    special = {
        name: (value.get("content") if isinstance(value, dict) else value)
        for name, value in settings.items()
        if name.endswith("_token")
    }
    content = [{"type": "image"}, {"type": "text", "text": SENTINEL}]
    rendered = _render(template, [{"role": "user", "content": content}], special, directory)
    if rendered.count(SENTINEL) != 1 or rendered.count(tokens.image_token) != 1:
        raise CompExportError(
            f"the chat template of {directory} renders {rendered!r}: it must show the image token "
            f"{tokens.image_token} and the prompt once each"
        )
    bos = special.get("bos_token")
    if tokens.add_bos and bos:
        rendered = rendered.removeprefix(bos)
    return rendered.replace(SENTINEL, PROMPT)


def _find_template(directory: Path) -> str | None:
    plain = directory / "chat_template.jinja"
    if plain.is_file():
        return plain.read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        found = _json(directory / name).get("chat_template")
        if isinstance(found, list):  # several named ones
            found = {entry["name"]: entry["template"] for entry in found}.get("default")
        if found:
            return found
    return None


def _render(
    template: str, messages: list[dict[str, Any]], special: dict[str, Any], directory: Path
) -> str:
    """Render as ``apply_chat_template`` does: jinja, sandboxed, blocks trimmed."""
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> str:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.globals["raise_exception"] = refuse
    try:
        return environment.from_string(template).render(
            messages=messages, add_generation_prompt=True, **special
        )
    except TemplateError as error:
        raise CompExportError(
            f"the chat template of {directory} fails ({error}): mend chat_template.jinja"
        ) from error


def _json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one when the file is not there."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CompExportError(f"{path} is not JSON ({error}): download it again") from error
    return found if isinstance(found, dict) else {}
