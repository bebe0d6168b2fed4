"""Checksums that stand beside runs of a file, compared while the runs are read."""

from __future__ import annotations

import threading
from bisect import bisect_right, insort

from ..tensors.checksum import crc32, crc32_combine

#: pieces held at most: who reads here and there for days must not fill the memory
_MAX_PIECES = 1 << 16


class RecordChecks:
    """The records of one file whose CRC-32 is known, and what of them was read so far.

    A record may be read in any pieces, in any order, from any thread: checksums of neighbouring pieces are
    combined. One whose pieces never join up exactly, because bytes were read twice or not at all, is not
    compared; nothing is read for the sake of comparing.
    """

    __slots__ = ("_ends", "_lock", "_pieces", "_records", "_starts")

    def __init__(self) -> None:
        self._records: dict[int, tuple[int, int, str]] = {}
        self._starts: list[int] = []
        #: start of a piece -> (its end, its checksum), and its end -> its start
        self._pieces: dict[int, tuple[int, int]] = {}
        self._ends: dict[int, int] = {}
        self._lock = threading.Lock()

    def expect(self, offset: int, nbytes: int, checksum: int, name: str) -> None:
        """The ``nbytes`` at ``offset``, called ``name``, should have this CRC-32. Records do not overlap."""
        with self._lock:
            if nbytes and offset not in self._records:
                self._records[offset] = offset + nbytes, checksum, name
                insort(self._starts, offset)

    def seen(self, offset: int, data: memoryview) -> str:
        """Told what was read at ``offset``: what is wrong with a record that is whole now, nothing if it is
        as it should be."""
        at = bisect_right(self._starts, offset) - 1
        start = self._starts[at] if at >= 0 else -1
        record = self._records.get(start)
        low, high = offset, offset + len(data)
        if record is None or low >= high or high > record[0]:
            return ""
        end, expected, name = record
        found = crc32(data)
        with self._lock:
            if low > start and (before := self._ends.pop(low, None)) is not None:
                found = crc32_combine(self._pieces.pop(before)[1], found, high - low)
                low = before
            if high < end and (after := self._pieces.pop(high, None)) is not None:
                found = crc32_combine(found, after[1], after[0] - high)
                high = after[0]
                del self._ends[high]
            if (low, high) == (start, end):
                self._records.pop(start, None)
                if found == expected:
                    return ""
                return (
                    f"{name} (bytes {start:,}..{end:,}) has checksum {found:08x}, "
                    f"but {expected:08x} was stored with it"
                )
            if low not in self._pieces and high not in self._ends and len(self._pieces) < _MAX_PIECES:
                self._pieces[low] = high, found
                self._ends[high] = low
        return ""
