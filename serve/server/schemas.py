"""Requests as OpenAI's clients send them, checked by pydantic; and fields that only this server has."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_CHOICES = 8
MOST_STOPS = 4  # strings, as in OpenAI's API
MOST_TOP_LOGPROBS = 20

Detail = Literal["auto", "low", "high", "original"]
Role = Literal["system", "developer", "user", "assistant"]
Words = Annotated[str, Field(max_length=1_000_000)]


class Schema(BaseModel):
    """A part of a request; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class TextPart(Schema):
    """Words of a message; ``output_text`` and ``input_text`` are those of the Responses API."""

    type: Literal["text", "input_text", "output_text"]
    text: Words
    annotations: list[Any] | None = None  # of earlier answers that a client sends back
    logprobs: list[Any] | None = None


class ImageUrl(Schema):
    """An image: a data URI, or a URL of an allowed host."""

    url: str
    detail: Detail = "auto"


class ImagePart(Schema):
    """An image of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl | str


class InputImagePart(Schema):
    """An image of the Responses API."""

    type: Literal["input_image"]
    image_url: str
    detail: Detail = "auto"


class RefusalPart(Schema):
    """A refusal in an earlier answer."""

    type: Literal["refusal"]
    refusal: Words


Part = Annotated[TextPart | ImagePart | InputImagePart | RefusalPart, Field(discriminator="type")]


class ChatMessage(BaseModel):
    """A turn of a conversation; clients send fields of earlier answers back, which are ignored."""

    model_config = ConfigDict(extra="ignore")

    role: Role
    content: Words | list[Part] | None = None
    tool_calls: list[Any] | None = None


class StreamOptions(BaseModel):
    """Options of streaming."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


class OwnFields(BaseModel):
    """Fields beyond OpenAI's API.

    Attributes:
        keep_factor: multiplies the keep ratios of a compressed model: above 1 keeps more image tokens.
        return_kept_indices: list the kept tokens of every drop place, and not only how many.
        ignore_eos: go on after the end of the answer up to its longest length, to measure (as in vLLM).
    """

    keep_factor: float | None = Field(None, gt=0, le=1000)
    return_kept_indices: bool = False
    ignore_eos: bool = False


class ChatRequest(OwnFields):
    """``POST /v1/chat/completions``; fields that are not here are judged by ``serve.server.fields``."""

    model_config = ConfigDict(extra="allow")

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_TOP_LOGPROBS)
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class ResponsesMessage(ChatMessage):
    """A turn of the Responses API."""

    type: Literal["message"] = "message"


class ResponsesRequest(OwnFields):
    """``POST /v1/responses``."""

    model_config = ConfigDict(extra="allow")

    model: str
    input: Words | list[ResponsesMessage] = Field(min_length=1)
    instructions: Words | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    stream: bool | None = None


class PictureInput(Schema):
    """A text or an image to embed, rank or classify."""

    text: Words | None = None
    image: str | None = None


class EmbeddingsRequest(BaseModel):
    """``POST /v1/embeddings``."""

    model_config = ConfigDict(extra="allow")

    model: str
    input: Words | PictureInput | Annotated[list[Words | PictureInput], Field(min_length=1)]
    encoding_format: Literal["float", "base64"] = "float"


class RerankRequest(Schema):
    """``POST /v1/rerank``: rank texts for an image, or images for a text."""

    model: str
    query: Words | PictureInput
    documents: list[Words | PictureInput] = Field(min_length=1)
    top_n: int | None = Field(None, ge=1)
    return_documents: bool = False


class StatementInput(Schema):
    """A statement about two images."""

    text: Words
    images: list[str]


class ClassifyRequest(Schema):
    """``POST /v1/classify``: judge statements."""

    model: str
    input: StatementInput | Annotated[list[StatementInput], Field(min_length=1)]
