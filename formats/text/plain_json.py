"""Strict JSON, for files that come out of a checkpoint.

Python's own reader keeps the last of two equal keys, takes ``NaN``, and recurses as deep as the
text asks. Two programs that read such a file differently are how a checkpoint says one thing to a
reviewer and another to a loader, so all of it is refused here.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from ...errors import CorruptCheckpoint, UnsafeCheckpoint

MAX_BYTES = 10 << 20
MAX_DEPTH = 64

# A string, or one bracket. Possessive, so that a long string costs neither memory nor backtracking.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{}]', re.DOTALL)


def loads(
    data: bytes,
    where: str,
    *,
    max_bytes: int = MAX_BYTES,
    max_depth: int = MAX_DEPTH,
    allow_nonfinite: bool = False,
) -> object:
    """The value of ``data``; ``where`` names its file in messages.

    Raises CorruptCheckpoint for what is not JSON or contradicts itself, UnsafeCheckpoint for what
    is too large or too deep. ``allow_nonfinite`` takes Python's ``NaN`` and ``Infinity``.
    """
    if len(data) > max_bytes:
        raise UnsafeCheckpoint(f"{where}: {len(data):,} bytes, more than the {max_bytes:,} allowed")
    text = _decode(data, where)
    _check_depth(data, where, max_depth)
    reader = _JsonReader(where, allow_nonfinite)
    try:
        return json.loads(
            text,
            object_pairs_hook=reader.pairs,
            parse_constant=reader.constant,
            parse_float=reader.number,
        )
    except json.JSONDecodeError as error:
        raise CorruptCheckpoint(
            f"{where}: not JSON: {error.msg.removesuffix(' at')} at line {error.lineno}, column {error.colno}"
        ) from None
    except CorruptCheckpoint:
        raise
    except ValueError:  # int() of more than 4,300 digits
        raise CorruptCheckpoint(f"{where}: holds an integer of thousands of digits") from None


def loads_object(data: bytes, where: str, **limits: Any) -> dict[str, object]:
    """Like :func:`loads`, for a file that must hold an object."""
    value = loads(data, where, **limits)
    if not isinstance(value, dict):
        raise CorruptCheckpoint(f"{where}: holds a {type(value).__name__}, not an object")
    return value


def dumps(value: object, *, sort_keys: bool = False) -> bytes:
    """``value`` as Hugging Face tools write it: two spaces, a final newline, UTF-8."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, sort_keys=sort_keys)
    try:
        return (text + "\n").encode()
    except UnicodeEncodeError:  # an unpaired surrogate, which UTF-8 cannot hold but an escape can
        text = json.dumps(value, indent=2, allow_nan=False, sort_keys=sort_keys)
        return (text + "\n").encode()


class _JsonReader:
    """The hooks of json.loads, with the file name that their messages need."""

    def __init__(self, where: str, allow_nonfinite: bool) -> None:
        self.where = where
        self.allow_nonfinite = allow_nonfinite

    def pairs(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    raise CorruptCheckpoint(f"{self.where}: the key {key!r} appears twice")
                seen.add(key)
        return found

    def constant(self, text: str) -> float:
        if not self.allow_nonfinite:
            raise CorruptCheckpoint(f"{self.where}: holds {text}, which JSON does not have")
        return float(text)

    def number(self, text: str) -> float:
        value = float(text)
        if math.isinf(value) and not self.allow_nonfinite:
            raise CorruptCheckpoint(f"{self.where}: the number {text[:40]} is out of range")
        return value


def _decode(data: bytes, where: str) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptCheckpoint(f"{where}: not UTF-8 text (byte {error.start:,})") from None
    if text.startswith("\ufeff"):
        raise CorruptCheckpoint(f"{where}: starts with a byte order mark, which JSON does not allow")
    return text


def _check_depth(data: bytes, where: str, max_depth: int) -> None:
    """Refuse deep nesting before json's recursion meets it."""
    if data.count(b"[") + data.count(b"{") <= max_depth:
        return
    depth = 0
    for token in _TOKEN.finditer(data):
        first = data[token.start()]
        if first in b"[{":
            depth += 1
            if depth > max_depth:
                raise UnsafeCheckpoint(f"{where}: nested deeper than {max_depth} levels")
        elif first in b"]}":
            depth -= 1
