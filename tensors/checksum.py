"""CRC-32 as zip uses it, from zlib-ng: fast enough (tens of GB/s) to be always on."""

from zlib_ng.zlib_ng import crc32, crc32_combine

__all__ = ["crc32", "crc32_combine"]
