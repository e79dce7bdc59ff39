"""The chat template of a checkpoint, rendered without transformers."""

from pathlib import Path
from typing import Any

from comp.errors import CompExportError
from export.checkpoint_files import optional_object
from export.llava_manifest import SpecialTokens

PROMPT = "{prompt}"
# LLaVA-1.5's own template, for checkpoints that were saved before templates were.
DEFAULT_TEMPLATE = "USER: <image>\n{prompt} ASSISTANT:"
SENTINEL = "comp-export-prompt"


def read_prompt_template(directory: Path, tokens: SpecialTokens) -> str:
    """The chat template rendered for one image and ``{prompt}``, generation prompt included.

    A leading BOS is left to the tokenizer when that adds one.

    Raises:
        CompExportError: when the checkpoint's template cannot be rendered so.
    """
    template = _find_template(directory)
    if template is None:
        return DEFAULT_TEMPLATE.replace("<image>", tokens.image_token)
    settings = optional_object(directory / "tokenizer_config.json")
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
        found = optional_object(directory / name).get("chat_template")
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
