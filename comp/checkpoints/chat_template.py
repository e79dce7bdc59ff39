"""The chat template of a checkpoint: which one transformers' processor takes, and a prompt in it.

Nothing here needs torch or transformers: the engine renders with it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comp.checkpoints.template_process import Rendering, TemplateFailed, rendered
from comp.errors import CompExportError
from comp.utils.json_files import optional_object, read_text

REMEDY = "take the file as the checkpoint's authors publish it"
FOLDER = "additional_chat_templates"
BYTE_ORDER_MARK = "\ufeff"
SHOWN = 200  # characters of a rendered prompt in an error
PROBES = ("what is it?", "where is it?")
# LLaVA-1.5's own, for checkpoints that were saved before there were templates.
LLAVA_TEMPLATE = (
    "{% for message in messages %}USER: "
    "{% for part in message.content if part.type == 'image' %}{{ image_token + '\n' }}{% endfor %}"
    "{% for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %} "
    "{% endfor %}ASSISTANT:"
)

Message = dict[str, Any]


def user_turn(prompt: str, images: int) -> list[Message]:
    """A conversation of one turn: the images first, as LLaVA was trained."""
    shown: list[Message] = [{"type": "image"}] * images
    return [{"role": "user", "content": [*shown, {"type": "text", "text": prompt}]}]


def render(source: str, tokens: Mapping[str, str], messages: Sequence[Message], where: str) -> str:
    """A conversation in a template, up to where the answer begins.

    Args:
        source: of the template.
        tokens: what it may name: ``bos_token``, ``image_token``, …
        messages: in the form of ``apply_chat_template``.
        where: the template is, for errors.

    Raises:
        CompExportError: the template fails, refuses the messages, or takes more time, memory or text
            than ``comp.checkpoints.template_process`` allows.
    """
    try:
        return rendered(Rendering(source, dict(tokens), list(messages)))
    except TemplateFailed as error:
        raise CompExportError(
            f"the chat template of {where} {error}: mend it, or {REMEDY}"
        ) from error


def check_template(source: str, tokens: Mapping[str, str], image_token: str, where: str) -> None:
    """Refuse a template that does not show one image and the words of a prompt.

    Raises:
        CompExportError: says what it renders.
    """
    first, second = (render(source, tokens, user_turn(words, 1), where) for words in PROBES)
    count = first.count(image_token)
    if count != 1 or first == second:
        missing = "the words of the prompt" if count == 1 else f"{image_token} once for one image"
        raise CompExportError(
            f"the chat template of {where} renders {first[:SHOWN]!r}, without {missing}: give the checkpoint "
            "the chat_template.jinja of its model"
        )


def find_chat_template(directory: Path) -> str | None:
    """The template that ``AutoProcessor`` of a checkpoint takes, else that of its tokenizer.

    Files in the order of transformers: ``processor_config.json``, ``chat_template.json``,
    ``chat_template.jinja`` with ``additional_chat_templates/``; then ``tokenizer_config.json``. Of
    several templates it is the one named ``default``.

    Returns:
        Its source, or nothing where the checkpoint has none.

    Raises:
        CompExportError: several templates and none of them the default, or files that contradict
            each other.
    """
    found = _of_processor(directory)
    if found is None:
        path = directory / "tokenizer_config.json"
        found = optional_object(path, REMEDY).get("chat_template")
    return default_template(found, str(directory))


def _of_processor(directory: Path) -> Any:
    found = optional_object(directory / "processor_config.json", REMEDY).get("chat_template")
    if found is not None:
        return found
    legacy = directory / "chat_template.json"
    more = sorted((directory / FOLDER).glob("*.jinja"))
    if legacy.is_file():
        if more:
            raise CompExportError(
                f"{legacy} and {more[0]} contradict each other, and transformers takes neither: keep "
                "chat_template.json or the folder"
            )
        return optional_object(legacy, REMEDY).get("chat_template")
    named = {path.stem: _source(path) for path in more}
    plain = directory / "chat_template.jinja"
    if plain.is_file():
        named["default"] = _source(plain)
    return named or None


def _source(path: Path) -> str:
    """As transformers reads it: a byte order mark is part of it."""
    with path.open("rb") as file:
        marked = file.read(3).startswith(BYTE_ORDER_MARK.encode())
    return (BYTE_ORDER_MARK if marked else "") + read_text(path, REMEDY)


def default_template(found: Any, where: str) -> str | None:
    """The source of the template that is used of those that files or a processor have.

    Raises:
        CompExportError: several, and none of them the default.
    """
    if isinstance(found, list):  # as tokenizer_config.json has several
        found = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
    if isinstance(found, dict):
        if "default" not in found:
            raise CompExportError(
                f"{where} has the chat templates {', '.join(map(str, found))} and none named "
                "default: name the one to use so"
            )
        found = found["default"]
    if found is not None and not isinstance(found, str):
        raise CompExportError(f"{where}: its chat template is no text: {REMEDY}")
    return found
