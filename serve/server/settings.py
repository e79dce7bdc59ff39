"""Settings of a server, and what its endpoints share."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from serve.generation.options import GenerationOptions
from serve.scheduling.adaptive import AUTO, Factor
from serve.server.conversation import Conversation, Picture
from serve.server.errors import ApiError
from serve.server.metrics import Metrics
from serve.server.models import Models, ServedModel
from serve.server.pictures import bytes_of_data_uri
from serve.server.remote_images import RemoteImages
from serve.server.schemas import MOST_STOPS, OwnFields

PREPARED_AT_ONCE = 2  # requests whose images are decoded at the same time


@dataclass(frozen=True)
class Settings:
    """Limits of requests.

    Attributes:
        max_body: bytes of a request.
        max_image: bytes of an image.
        max_images: images of a request.
        max_new_tokens: of an answer, if the request does not say.
        request_seconds: time that a request may take, with waiting.
        keys: API keys; without one everybody may ask.
        image_hosts: hosts that images may be fetched from.
        fetch_seconds: time that one fetch may take.
        seed: seed of the draws of requests that have none.
        log_prompts: whether the log has the words of requests.
        keep_factor: factor on keep ratios of requests that name none; ``auto`` chooses it by the load.
    """

    max_body: int = 32 << 20
    max_image: int = 16 << 20
    max_images: int = 16
    max_new_tokens: int = 512
    request_seconds: float = 300.0
    keys: tuple[str, ...] = ()
    image_hosts: tuple[str, ...] = ()
    fetch_seconds: float = 10.0
    seed: int = 0
    keep_factor: Factor = 1.0
    log_prompts: bool = False


@dataclass
class Server:
    """Models, settings and metrics that all endpoints share."""

    models: Models
    settings: Settings
    metrics: Metrics = field(init=False)
    remote: RemoteImages = field(init=False)
    draws: random.Random = field(init=False)
    preparing: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(PREPARED_AT_ONCE)
    )

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.models)
        settings = self.settings
        self.draws = random.Random(settings.seed)
        self.remote = RemoteImages(settings.image_hosts, settings.max_image, settings.fetch_seconds)

    async def picture(self, picture: Picture) -> bytes:
        """Return the bytes of an image of a request.

        Raises:
            ApiError: it cannot be read, or its host is not allowed.
        """
        if picture.url.startswith(("http://", "https://")):
            return await self.remote.fetch(picture.url, picture.param)
        return bytes_of_data_uri(picture.url, picture.param, self.settings.max_image)


def factor_of(
    server: Server, model: ServedModel, request: OwnFields, conversation: Conversation
) -> Factor:
    """Return the factor on keep ratios: the request's, else by ``detail`` of its images, else the server's.

    The last two count only for a model that takes a factor; others run as they are.
    """
    if request.keep_factor is not None:
        return request.keep_factor
    if not model.keeps_by_factor:
        return 1.0
    return conversation.detail_factor or server.settings.keep_factor


def options_of(
    server: Server,
    request: OwnFields,
    factor: Factor,
    *,
    max_new_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    seed: int | None = None,
    stop: str | Sequence[str] | None = None,
    choices: int = 1,
    top_logprobs: int | None = None,
) -> list[GenerationOptions]:
    """Return the options of each choice of a request.

    Without a seed, sampling draws one. With ``auto`` the factor is replaced when the prompt is read.

    Raises:
        ApiError: too many stop strings, or an empty one.
    """
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > MOST_STOPS or not all(stops):
        raise ApiError(f"stop: give up to {MOST_STOPS} strings, none of them empty", param="stop")
    warmth = 1.0 if temperature is None else temperature
    first = server.draws.getrandbits(48) if seed is None else seed % 2**64
    return [
        GenerationOptions(
            max_new_tokens=max_new_tokens or server.settings.max_new_tokens,
            temperature=warmth,
            top_p=1.0 if top_p is None else top_p,
            seed=(first + choice) % 2**64,
            stop=stops,
            keep_factor=1.0 if factor == AUTO else factor,
            ignore_eos=request.ignore_eos,
            top_logprobs=top_logprobs,
        )
        for choice in range(choices)
    ]
