"""Find the chat template of a checkpoint as transformers' processor does, and render prompts in it.

The engines use it too, so that it needs neither torch nor transformers.
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
# LLaVA-1.5's own template, for checkpoints that have none.
LLAVA_TEMPLATE = (
    "{% for message in messages %}USER: "
    "{% for part in message.content if part.type == 'image' %}{{ image_token + '\n' }}{% endfor %}"
    "{% for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %} "
    "{% endfor %}ASSISTANT:"
)

Message = dict[str, Any]


def user_turn(prompt: str, images: int) -> list[Message]:
    """Return a conversation of one turn: the images first, as LLaVA was trained."""
    shown: list[Message] = [{"type": "image"}] * images
    return [{"role": "user", "content": [*shown, {"type": "text", "text": prompt}]}]


def render(source: str, tokens: Mapping[str, str], messages: Sequence[Message], where: str) -> str:
    """Render a conversation in a template, up to the beginning of the answer.

    Args:
        source: source text of the template.
        tokens: names that the template may use: ``bos_token``, ``image_token``, …
        messages: in the form of ``apply_chat_template``.
        where: location of the template, for errors.

    Raises:
        CompExportError: the template fails, refuses the messages, or takes more time, memory or text
            than ``comp.checkpoints.template_process`` allows.
    """
    try:
        return rendered(Rendering(source, dict(tokens), list(messages)))
    except TemplateFailed as error:
        raise CompExportError(
            f"the chat template of {where} {error}: fix it, or {REMEDY}"
        ) from error


def check_template(source: str, tokens: Mapping[str, str], image_token: str, where: str) -> None:
    """Refuse a template that does not render one image and the words of a prompt.

    Raises:
        CompExportError: says what the template renders.
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
    """Return the template that ``AutoProcessor`` of a checkpoint uses, else that of its tokenizer.

    Files in the order of transformers: ``processor_config.json``, ``chat_template.json``,
    ``chat_template.jinja`` with ``additional_chat_templates/``; then ``tokenizer_config.json``. Of
    several templates, the one named ``default``.

    Returns:
        The source text, or ``None`` if the checkpoint has no template.

    Raises:
        CompExportError: several templates and none of them the default, or files that contradict
            each other.
    """
    template = _of_processor(directory)
    if template is None:
        path = directory / "tokenizer_config.json"
        template = optional_object(path, REMEDY).get("chat_template")
    return default_template(template, str(directory))


def _of_processor(directory: Path) -> Any:
    template = optional_object(directory / "processor_config.json", REMEDY).get("chat_template")
    if template is not None:
        return template
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
    """Read a template as transformers does: a byte order mark is part of it."""
    with path.open("rb") as file:
        marked = file.read(3).startswith(BYTE_ORDER_MARK.encode())
    return (BYTE_ORDER_MARK if marked else "") + read_text(path, REMEDY)


def default_template(template: Any, where: str) -> str | None:
    """Return the source of the default template, from a ``chat_template`` field in any of its forms.

    Raises:
        CompExportError: there are several templates and none is the default.
    """
    if isinstance(template, list):  # as tokenizer_config.json has several
        template = {
            each.get("name"): each.get("template") for each in template if isinstance(each, dict)
        }
    if isinstance(template, dict):
        if "default" not in template:
            raise CompExportError(
                f"{where} has the chat templates {', '.join(map(str, template))} and none named "
                "default: name the one to use so"
            )
        template = template["default"]
    if template is not None and not isinstance(template, str):
        raise CompExportError(f"{where}: its chat template is no text: {REMEDY}")
    return template
