"""The frames of a zip archive of stored records: what stands before each, and the directory at the end.

Source: PKWARE's APPNOTE.TXT, 4.3.7 to 4.3.16, zip64 included.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

LOCAL = struct.Struct("<IHHHHHIIIHH")
CENTRAL = struct.Struct("<IHHHHHHIIIHHHHHII")
ENTRY = struct.Struct("<I4xHH4xIIIHHH8xI")  # what a reader needs of CENTRAL
END = struct.Struct("<IHHHHIIH")
END64 = struct.Struct("<IQHHIIQQQQ")
LOCATOR64 = struct.Struct("<IIQI")
#: what stands for a number that follows in 64 bits
FULL16: Final = 0xFFFF
FULL32: Final = 0xFFFFFFFF


def local_header(name: bytes, nbytes: int, crc: int, extra: bytes = b"") -> bytes:
    """What stands before the bytes of a record."""
    narrow, version = nbytes, 20
    if nbytes >= FULL32:
        extra = struct.pack("<HHQQ", 1, 16, nbytes, nbytes) + extra
        narrow, version = FULL32, 45
    return (
        LOCAL.pack(*(0x04034B50, version, 0, 0, 0, 0, crc, narrow, narrow, len(name), len(extra)))
        + name
        + extra
    )


def central_directory(entries: Iterable[tuple[bytes, int, int, int]], end: int) -> bytes:
    """The directory of (name, size, checksum, header offset), which stands at ``end`` of its archive."""
    out = bytearray()
    count = 0
    for name, nbytes, crc, header in entries:
        wide = [size for size in (nbytes, nbytes) if size >= FULL32]
        wide += [header] if header >= FULL32 else []
        extra = struct.pack(f"<HH{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
        version = 45 if wide else 20
        narrow = min(nbytes, FULL32)
        out += CENTRAL.pack(
            *(0x02014B50, version, version, 0, 0, 0, 0, crc, narrow, narrow),
            *(len(name), len(extra), 0, 0, 0, 0, min(header, FULL32)),
        )
        out += name + extra
        count += 1
    size = len(out)
    if end >= FULL32 or count >= FULL16:
        out += END64.pack(0x06064B50, 44, 45, 45, 0, 0, count, count, size, end)
        out += LOCATOR64.pack(0x07064B50, 0, end + size, 1)
    few = min(count, FULL16)
    out += END.pack(0x06054B50, 0, 0, few, few, size, min(end, FULL32), 0)
    return bytes(out)
