"""The process that renders chat templates, which are untrusted programs.

It reads one JSON object a line from stdin and answers with one on stdout, until stdin ends. It renders as
transformers' ``apply_chat_template`` does, with the same sandbox, filters, globals and tags. A test compares
the two.
"""

import json
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

TEMPLATES = 16  # compiled templates in the cache
SHOWN = 300  # characters of an error


class TooLong(Exception):  # noqa: N818, what a text is
    """A rendered prompt exceeds the limit of characters."""


class Generation(Extension):
    """``{% generation %}…{% endgeneration %}``, which marks text for training; rendered as its content."""

    tags = {"generation"}  # noqa: RUF012, jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        """Parse the block as a call of its body, which gives it its own scope."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_content", [])
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _content(self, caller: Callable[[], str]) -> str:
        return caller()


class TemplateDict:
    """``dict`` for templates: a callable instead of the class, whose attributes could be misused."""

    def __call__(self, *pairs: Any, **named: Any) -> dict[Any, Any]:
        return dict(*pairs, **named)

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class TemplateNamespace(Namespace):
    """``namespace`` for templates, without names that begin with an underscore."""

    def __init__(*args: Any, **named: Any) -> None:
        self, *pairs = args
        attributes = dict(*pairs, **named)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}: names may not begin with _")


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)  # noqa: DTZ005, local time, as transformers


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return plain JSON; jinja2's own filter escapes HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


@lru_cache(maxsize=TEMPLATES)
def compiled(source: str) -> Template:
    """Compile a template in the environment of transformers."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": TemplateDict(),
        "namespace": TemplateNamespace,
    }
    return environment.from_string(source)


def render(source: str, tokens: dict[str, str], messages: list[Any], longest: int) -> str:
    """Render a conversation in a template.

    Raises:
        TooLong: the text is longer than ``longest`` characters.
        Exception: anything that the template makes Python raise.
    """
    given = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
    pieces: list[str] = []
    size = 0
    for piece in compiled(source).generate(**(tokens | given)):
        size += len(piece)
        if size > longest:
            raise TooLong(f"writes more than {longest} characters")
        pieces.append(piece)
    return "".join(pieces)


def main() -> None:
    """Render until stdin ends; the first line holds the limits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt from a terminal is for the parent
    limits = json.loads(sys.stdin.readline())
    _limit_memory(limits["bytes"])
    for line in sys.stdin:
        request = json.loads(line)
        _limit_time(limits["seconds"])
        answer = _answer(request, limits["characters"])
        _limit_time(0)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _answer(request: dict[str, Any], longest: int) -> dict[str, str]:
    try:
        return {"text": render(request["source"], request["tokens"], request["messages"], longest)}
    except MemoryError:
        return {"failed": "takes more memory than it may"}
    except RecursionError:
        return {"failed": "calls itself too often"}
    except TooLong as error:
        return {"failed": str(error)}
    except TemplateError as error:
        return {"failed": f"fails ({str(error)[:SHOWN]})"}
    except Exception as error:  # a template is a program, and may make Python raise anything
        return {"failed": f"fails ({type(error).__name__}: {str(error)[:SHOWN]})"}


def _limit_memory(most: int) -> None:
    """Limit this process's memory if the system supports it: macOS refuses, Windows has no limits."""
    try:
        import resource
    except ImportError:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (bound, bound))


def _limit_time(seconds: float) -> None:
    """End this process after ``seconds`` of processor time; 0: never."""
    if hasattr(signal, "setitimer"):  # the kernel ends the process, whatever Python is doing
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
