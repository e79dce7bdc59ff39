"""Judge the fields of a request that the server does not use: harmless ones pass, others are refused."""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

from comp.utils.similar import suggestion
from serve.server.errors import ApiError

# Fields that do not change an answer here.
NO_OPS = frozenset(
    [
        *("user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("prompt_cache_retention", "parallel_tool_calls", "prediction", "verbosity", "include"),
        *("reasoning_effort", "reasoning", "truncation", "background", "max_tool_calls"),
    ]
)


def _nothing(value: Any) -> bool:
    return not value


# Fields that would change an answer, and values of them that change nothing.
NEUTRAL: Mapping[str, Callable[[Any], bool]] = {
    "tools": _nothing,
    "functions": _nothing,
    "tool_choice": lambda value: value in (None, "none", "auto"),
    "function_call": lambda value: value in (None, "none", "auto"),
    "response_format": lambda value: value is None or value == {"type": "text"},
    "text": lambda value: (
        value is None or value.get("format", {"type": "text"}) == {"type": "text"}
    ),
    "logit_bias": _nothing,
    "presence_penalty": _nothing,
    "frequency_penalty": _nothing,
    "modalities": lambda value: value in (None, ["text"]),
    "audio": _nothing,
    "web_search_options": lambda value: value is None,
    "previous_response_id": _nothing,
    "conversation": _nothing,
    "prompt": _nothing,
    "dimensions": lambda value: value is None,
}


def check_fields(request: BaseModel) -> None:
    """Refuse fields that the server does not use and that could change the answer.

    Raises:
        ApiError: names the field, and a similar one if it is unknown.
    """
    known = type(request).model_fields
    for name, value in (request.model_extra or {}).items():
        if name in NO_OPS:
            continue
        neutral = NEUTRAL.get(name)
        if neutral is None:
            similar = suggestion(name, [*known, *NO_OPS, *NEUTRAL])
            raise ApiError(f"unknown field {name!r}: {similar or 'leave it out'}", param=name)
        if not _holds(neutral, value):
            raise ApiError(
                f"{name} is not supported by this server, and would change the answer: leave it out",
                param=name,
                code="unsupported_parameter",
            )


def _holds(neutral: Callable[[Any], bool], value: Any) -> bool:
    try:
        return neutral(value)
    except AttributeError:  # of another type
        return False
