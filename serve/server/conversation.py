"""Turn the messages of a request into a conversation for the chat template, and its images."""

from collections.abc import Sequence
from dataclasses import dataclass

from comp.checkpoints.chat_template import Message
from serve.server.errors import ApiError
from serve.server.schemas import ChatMessage, Detail, ImagePart, InputImagePart, TextPart

# The factor on keep ratios that ``detail`` of the images stands for; the largest of a request counts.
FACTORS: dict[Detail, float] = {"low": 0.5, "auto": 1.0, "high": 1.0, "original": 2.0}
ROLES = {"developer": "system"}  # OpenAI's newer name


@dataclass(frozen=True)
class Picture:
    """An image of a request: its URL, and the field that it stands in."""

    url: str
    param: str


@dataclass(frozen=True)
class Conversation:
    """A conversation in the form of ``apply_chat_template``, and its images in order.

    Attributes:
        detail_factor: the factor on keep ratios by ``detail``; None if no image asks for one.
    """

    messages: list[Message]
    pictures: list[Picture]
    detail_factor: float | None

    @property
    def question(self) -> str:
        """The words of the last user turn, for models that take one question."""
        parts = self.messages[-1]["content"]
        return "\n".join(part["text"] for part in parts if part["type"] == "text")


def conversation_of(messages: Sequence[ChatMessage], max_images: int) -> Conversation:
    """Read the turns of a request.

    Raises:
        ApiError: an empty turn, too many images, an image outside a user's turn, or no question at the end.
    """
    turns: list[Message] = []
    pictures: list[Picture] = []
    details: list[float] = []
    for number, message in enumerate(messages):
        where = f"messages.{number}"
        parts = _parts_of(message, where, pictures, details)
        if any(part["type"] == "image" for part in parts) and message.role != "user":
            raise ApiError(
                f"{where}: an image of a {message.role} turn: send it as user", param=where
            )
        turns.append({"role": ROLES.get(message.role, message.role), "content": parts})
    if messages[-1].role != "user":
        raise ApiError(
            "the last message must be of the user: it is what is answered", param="messages"
        )
    if len(pictures) > max_images:
        raise ApiError(
            f"{len(pictures)} images, {max_images} at most: send fewer", param="messages"
        )
    return Conversation(turns, pictures, max(details, default=None))


def _parts_of(
    message: ChatMessage, where: str, pictures: list[Picture], details: list[float]
) -> list[Message]:
    if message.tool_calls:
        raise ApiError(f"{where}.tool_calls: this server calls no tools", param=where)
    content = message.content
    if not content:
        raise ApiError(f"{where}.content is empty: send words or images", param=where)
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    parts: list[Message] = []
    for number, part in enumerate(content):
        param = f"{where}.content.{number}"
        if isinstance(part, TextPart):
            parts.append({"type": "text", "text": part.text})
        elif isinstance(part, ImagePart | InputImagePart):
            shown = part.image_url
            url = shown if isinstance(shown, str) else shown.url
            detail = part.detail if isinstance(part, InputImagePart) else _detail_of(part)
            if detail != "auto":
                details.append(FACTORS[detail])
            pictures.append(Picture(url, f"{param}.image_url"))
            parts.append({"type": "image"})
        else:
            parts.append({"type": "text", "text": part.refusal})
    return parts


def _detail_of(part: ImagePart) -> Detail:
    return "auto" if isinstance(part.image_url, str) else part.image_url.detail
