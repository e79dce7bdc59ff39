"""Changes to JSON, bytes and text. All follow from a generator alone."""

import json
from collections.abc import Sequence
from random import Random
from typing import Any

JsonPath = tuple[str | int, ...]
DEEP = 100_000

# Values that no field allows: they are refused or make no difference.
NONSENSE: tuple[Any, ...] = (
    None,
    [],
    {},
    [None],
    {"a": 1},
    "",
    "x",
    "\ud800",
    "\0",
    -1,
    -(2**31),
    2**63,
    10**400,
    float("nan"),
    float("inf"),
    float("-inf"),
    -0.5,
    1e308,
    [[[[]]]],
)
ODD_NUMBERS = (0, 1, 2, 3, -1, 7, 255, 65_536, 2**31 - 1, 2**31, 2**63, 1e-320, 0.5, 1e30, -2.5)
ODD_TEXTS = (
    "",
    " ",
    "x",
    "ü€😀",
    "\n",
    "{{ x }}",
    "{% raw %}",
    "../x",
    "/dev/zero",
    "None",
    "a" * 5000,
)


def some_place(rng: Random, value: Any, leaf: bool = False) -> JsonPath:
    """Return the end of a random walk from the whole: a long list weighs as much as one field.

    Args:
        rng: makes the choices.
        value: the JSON value to walk through.
        leaf: whether the walk continues to a value without parts.
    """
    path: JsonPath = ()
    while isinstance(value, (dict, list)) and value and (leaf or not path or rng.random() < 0.8):
        step = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        path, value = (*path, step), value[step]
    return path


def at(value: Any, path: JsonPath) -> Any:
    for step in path:
        value = value[step]
    return value


def put(value: Any, path: JsonPath, new: Any) -> Any:
    """Return the value with another part. It is changed in place, unless the whole is replaced."""
    if not path:
        return new
    at(value, path[:-1])[path[-1]] = new
    return value


def break_json(rng: Random, value: Any) -> tuple[Any, str]:
    """Put nonsense in one place, leave a part out, or add one.

    Args:
        rng: decides.
        value: changed in place.

    Returns:
        The new value, and what was done.
    """
    path = some_place(rng, value)
    part = at(value, path)
    name = ".".join(map(str, path)) or "the whole"
    deed = rng.random()
    if deed < 0.2 and path:
        del at(value, path[:-1])[path[-1]]
        return value, f"{name} left out"
    if deed < 0.25 and path and isinstance(path[-1], str):
        parent = at(value, path[:-1])
        parent[rng.choice((path[-1].upper(), f"{path[-1]}s", *parent))] = parent.pop(path[-1])
        return value, f"{name} under another name"
    if deed < 0.3 and isinstance(part, dict):
        part["surely_unknown"] = rng.choice(NONSENSE)
        return value, f"{name} with an unknown field"
    if deed < 0.35 and isinstance(part, list) and part:
        part.append(part[0])
        return value, f"{name} longer"
    new = rng.choice(NONSENSE)
    return put(value, path, new), f"{name} is {new!r:.40}"


def change_json(rng: Random, value: Any) -> tuple[Any, str]:
    """Change as ``break_json`` does, or to plausible values: other numbers, texts, switches."""
    if rng.random() < 0.4:
        return break_json(rng, value)
    path = some_place(rng, value, leaf=True)
    old, new = at(value, path), None
    if isinstance(old, bool):
        new = not old
    elif isinstance(old, (int, float)):
        near = (old + 1, old - 1, old * 2, -old, str(old), float(old))
        new = rng.choice(rng.choice((near, ODD_NUMBERS)))
    elif isinstance(old, str):
        place = rng.randrange(len(old) + 1)
        near = (
            old[:place],
            old[:place] + rng.choice("aZ0 ▁<{%") + old[place:],
            old.upper(),
            old[1:],
        )
        new = rng.choice(rng.choice((near, ODD_TEXTS)))
    else:
        new = rng.choice((True, False, 0, 1, "x"))
    return put(value, path, new), f"{'.'.join(map(str, path))}: {old!r:.30} is {new!r:.40}"


def break_text(rng: Random, text: str) -> tuple[bytes, str]:
    """Damage the structure of JSON text, not a value in it."""
    data = text.encode()
    deed = rng.randrange(7)
    if deed == 0:
        end = rng.randrange(len(data))
        return data[:end], f"cut at byte {end}"
    if deed == 1:
        place = rng.choice(outside_strings(data))
        return data[:place] + data[place + 1 :], f"without byte {place}"
    if deed == 2:
        place = rng.randrange(len(data))
        return data[:place] + b"\xff\xfe" + data[place:], f"no UTF-8 at {place}"
    if deed == 3:
        bracket = rng.choice(("[", '{"a":'))
        return (bracket * DEEP).encode(), f"{DEEP} times {bracket}"
    if deed == 4:
        return data + b"\0" * rng.randrange(1, 5000), "zeros after it"
    if deed == 5:
        return rng.choice(
            (b"", b"null", b"[]", b"0", b'"x"', b"NaN", b"\xef\xbb\xbf")
        ), "another value"
    return ("﻿" + text).encode("utf-16"), "in UTF-16"


def outside_strings(data: bytes) -> list[int]:
    """Where the punctuation of JSON stands; in a string it would be a part of a value."""
    inside, escaped, places = False, False, []
    for place, byte in enumerate(data):
        if byte == ord('"') and not escaped:
            inside = not inside
        elif not inside and byte in b"{}[],:":
            places.append(place)
        escaped = inside and byte == ord("\\") and not escaped
    return places


def break_bytes(rng: Random, data: bytes, start: int = 0) -> tuple[bytes, str]:
    """Change some bytes; half of the changes go to the first ``start`` bytes, if not 0."""
    result = bytearray(data)
    deed = rng.random()
    if deed < 0.15:
        end = rng.randrange(len(result))
        return bytes(result[:end]), f"cut at byte {end}"
    if deed < 0.2:
        return bytes(result) + rng.randbytes(rng.randrange(1, 100)), "longer"
    if deed < 0.25:
        return rng.choice(
            (b"", b"\0" * len(result), rng.randbytes(min(len(result), 4096)))
        ), "replaced"
    places = []
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        near = start and rng.random() < 0.5
        place = rng.randrange(min(start, len(result)) if near else len(result))
        places.append(place)
        new = rng.choice(
            (rng.randbytes(1), b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f", b"\0\0\0\x80")
        )
        result[place : place + len(new)] = new
    return bytes(result), f"bytes {sorted(places)} changed"


def to_json(value: Any) -> str:
    """Return JSON as Python writes it: with NaN and lone surrogates."""
    return json.dumps(value)


def hostile_text(rng: Random, words: Sequence[str]) -> str:
    """Return a text of odd characters, special tokens and words."""
    odd = ("\0", "\ud800", "￾", "‮", "\r\n", "\t", "  ", "ﷺ", "é", "é", "😀", "‍", " ")
    marks = (
        "<image>",
        "</s>",
        "<s>",
        "<unk>",
        "<pad>",
        "{{ 7 * 7 }}",
        "{% for %}",
        "{#",
        "▁",
        "<0x00>",
    )
    parts = []
    for _ in range(rng.choice((0, 1, 3, 8, 30))):
        pick = rng.random()
        if pick < 0.4:
            parts.append(rng.choice(words))
        elif pick < 0.6:
            parts.append(rng.choice(odd))
        elif pick < 0.75:
            parts.append(rng.choice(marks))
        elif pick < 0.95:
            parts.append(chr(rng.choice((rng.randrange(32, 127), rng.randrange(128, 0x3000)))))
        else:
            parts.append(rng.choice(words) * rng.choice((10, 100, 5000)))
        parts.append(rng.choice(("", " ")))
    return "".join(parts)
