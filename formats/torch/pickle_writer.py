"""Write pickles opcode by opcode: objects of classes that are not installed, the same bytes always.

Protocol 2, and of it only the opcodes that ``torch.load(weights_only=True)`` accepts
(torch/_weights_only_unpickler.py). Source of the opcodes: CPython's ``Lib/pickletools.py``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from ...errors import UnsupportedError

EMPTY_DICT: Final = b"}"
EMPTY_LIST: Final = b"]"
EMPTY_TUPLE: Final = b")"
MARK: Final = b"("
NONE: Final = b"N"
TRUE: Final = b"\x88"
FALSE: Final = b"\x89"
APPENDS: Final = b"e"
SETITEMS: Final = b"u"
TUPLE: Final = b"t"
TUPLE1: Final = b"\x85"
NEW: Final = b")\x81"  # EMPTY_TUPLE, NEWOBJ: an object without constructor arguments
REDUCE: Final = b"R"
BUILD: Final = b"b"
PERSISTENT: Final = b"Q"


def integer(value: int) -> bytes:
    """The shortest opcode of an int."""
    if 0 <= value < 1 << 8:
        return b"K%c" % value
    if 0 <= value < 1 << 16:
        return b"M" + value.to_bytes(2, "little")
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + value.to_bytes(4, "little", signed=True)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    if len(raw) > 255:
        raise UnsupportedError(f"an integer of {len(raw)} bytes cannot be written")
    return b"\x8a%c" % len(raw) + raw


def integers(values: Sequence[int]) -> bytes:
    """A tuple of ints."""
    body = b"".join(map(integer, values))
    if len(values) > 3:
        return MARK + body + TUPLE
    return body + (EMPTY_TUPLE, TUPLE1, b"\x86", b"\x87")[len(values)]


class PickleWriter:
    """Collects opcodes. A global or string that comes again is fetched from the memo."""

    def __init__(self) -> None:
        self._parts = [b"\x80\x02"]
        self._memo: dict[str | tuple[str, str], bytes] = {}
        #: appends ready-made opcodes
        self.raw = self._parts.append

    def fetch(self, key: str | tuple[str, str]) -> bytes:
        """The opcode for a string or (module, name) global, which is written out the first time.

        The first result must be appended before any later one, because it stores the value.
        """
        known = self._memo.get(key)
        if known is not None:
            return known
        index = len(self._memo)
        if index < 256:
            put, self._memo[key] = b"q%c" % index, b"h%c" % index
        else:
            number = index.to_bytes(4, "little")
            put, self._memo[key] = b"r" + number, b"j" + number
        if isinstance(key, tuple):
            return b"c" + key[0].encode() + b"\n" + key[1].encode() + b"\n" + put
        text = key.encode()
        return b"X" + len(text).to_bytes(4, "little") + text + put

    def name(self, module: str, name: str) -> None:
        self.raw(self.fetch((module, name)))

    def text(self, text: str) -> None:
        self.raw(self.fetch(text))

    def value(self, value: object) -> None:
        """A plain value: None, bool, int, float, str and lists, tuples and dicts of them."""
        kind = type(value)
        if value is None:
            self.raw(NONE)
        elif isinstance(value, bool):
            self.raw(TRUE if value else FALSE)
        elif isinstance(value, int) and kind is int:
            self.raw(integer(value))
        elif isinstance(value, float) and kind is float:
            self.raw(b"G" + struct.pack(">d", value))
        elif isinstance(value, str) and kind is str:
            self.text(value)
        elif isinstance(value, list) and kind is list:
            self.raw(EMPTY_LIST + MARK)
            for item in value:
                self.value(item)
            self.raw(APPENDS)
        elif isinstance(value, tuple) and kind is tuple:
            self.raw(MARK)
            for item in value:
                self.value(item)
            self.raw(TUPLE)
        elif isinstance(value, dict) and kind is dict:
            self.raw(EMPTY_DICT + MARK)
            for key, item in value.items():
                self.value(key)
                self.value(item)
            self.raw(SETITEMS)
        else:
            raise UnsupportedError(f"a value of type {kind.__name__} cannot be written")

    def finish(self) -> bytes:
        """The whole pickle."""
        return b"".join([*self._parts, b"."])
