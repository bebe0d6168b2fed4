"""The wire format of protocol buffers, for readers that know their fields and parse no schema.

Fields of messages in a file or in memory are places, so that a value of gigabytes is stepped over. What
stands before a value is its tag: the number of the field and the kind of value.

Source: protobuf's "Encoding" page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_WINDOW: Final = 1 << 20
#: bytes of the longest number
_LONGEST: Final = 10


class Malformed(ValueError):
    """Bytes that are no message: what is wrong, and where."""

    def __init__(self, what: str, at: int) -> None:
        super().__init__(f"{what} at byte {at:,}")


class Run(NamedTuple):
    """Bytes of a file or a buffer."""

    offset: int
    length: int


class ProtobufMessage:
    """A message of ``size`` bytes, of which ``read(length, offset)`` gives some."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._read, self._size = read, size
        self._start, self._window = 0, b""

    @classmethod
    def of(cls, data: bytes) -> ProtobufMessage:
        """One in memory."""
        found = cls(lambda length, offset: data[offset : offset + length], len(data))
        found._window = data
        return found

    def fields(self, whole: Run | None = None) -> Iterator[tuple[int, Run, int]]:
        """(tag, where the value lies, the value if it is a VARINT) of the fields of the message in ``whole``,
        or of the outermost; BYTES lie behind their length. Raises Malformed."""
        at, end = whole or (0, self._size)
        end += at
        while at < end:
            begun, value = at, 0
            tag, at = self._varint(at, end)
            wire = tag & 7
            if wire == BYTES:
                length, at = self._varint(at, end)
            elif wire == VARINT:
                value, after = self._varint(at, end)
                length = after - at
            elif wire in (FIXED32, FIXED64):
                length = 4 if wire == FIXED32 else 8
            else:
                raise Malformed(f"wire type {wire}", begun)
            if at + length > end or tag < 8:
                raise Malformed("a field that does not fit its message", begun)
            yield tag, Run(at, length), value
            at += length

    def values(self, whole: Run) -> dict[int, Any]:
        """Tag -> number or bytes of the message in ``whole``."""
        return {
            tag: value if tag & 7 == VARINT else self.bytes(run) for tag, run, value in self.fields(whole)
        }

    def bytes(self, run: Run) -> bytes:
        """What lies there."""
        begun = run.offset - self._start
        if 0 <= begun <= len(self._window) - run.length:
            return self._window[begun : begun + run.length]
        return self._read(run.length, run.offset)

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """(value, position behind it)."""
        place, behind = at - self._start, self._start + len(self._window)
        if place < 0 or (at + _LONGEST > behind and behind < self._size):
            self._start, place = at, 0
            self._window = self._read(min(_WINDOW, self._size - at), at)
        if at < end and (byte := self._window[place]) < 128:  # most are short
            return byte, at + 1
        value = shift = 0
        for byte in self._window[place : min(place + _LONGEST, end - self._start)]:
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value, at + shift // 7
        raise Malformed("a number that does not end", at)


def varint(value: int) -> bytes:
    """A number; a negative one as its two's complement of 64 bits."""
    value %= 1 << 64
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(tag: int, value: int | bytes) -> bytes:
    """A field that holds a number, or bytes: a text or a message."""
    return varint(tag) + (varint(value) if isinstance(value, int) else varint(len(value)) + value)
