"""Checksums of records are compared on the way, in whatever pieces the records are read."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemoconv.errors import CorruptCheckpoint
from nemoconv.stores.files import FilePart, RecordChecks, SourceFile

DATA = random.Random(0).randbytes(400)
RECORDS = [(10, 50), (60, 1), (64, 200), (300, 64)]


def expecting(wrong: int | None = None) -> RecordChecks:
    checks = RecordChecks()
    for number, (offset, nbytes) in enumerate(RECORDS):
        right = crc32(DATA[offset : offset + nbytes])
        checks.expect(offset, nbytes, right ^ (number == wrong), f"r{number}")
    return checks


def read(checks: RecordChecks, pieces: list[tuple[int, int]]) -> list[str]:
    found = [checks.seen(low, memoryview(DATA)[low:high]) for low, high in pieces]
    return [wrong for wrong in found if wrong]


@given(st.sets(st.integers(1, 399)), st.randoms(use_true_random=False))
def test_any_pieces_in_any_order(cuts: set[int], order: random.Random) -> None:
    """Each record cut anywhere, the pieces of all of them mixed: a wrong checksum shows, a right one never."""
    pieces = []
    for offset, nbytes in RECORDS:
        at = [offset, *sorted(cut for cut in cuts if offset < cut < offset + nbytes), offset + nbytes]
        pieces += pairwise(at)
    order.shuffle(pieces)
    assert read(expecting(), pieces) == []
    for number, (offset, nbytes) in enumerate(RECORDS):
        right = crc32(DATA[offset : offset + nbytes])
        assert read(expecting(number), pieces) == [
            f"r{number} (bytes {offset}..{offset + nbytes}) has checksum {right:08x}, but {right ^ 1:08x} was "
            "stored with it"
        ]


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400)), max_size=40))
def test_what_overlaps_or_leaves_out_is_no_false_alarm(pieces: list[tuple[int, int]]) -> None:
    checks = expecting()
    assert read(checks, [(min(pair), max(pair)) for pair in pieces]) == []
    assert read(checks, [(offset, offset + nbytes) for offset, nbytes in RECORDS]) == []


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemoconv.stores.files._MAX_PIECES", 4)
    checks = expecting(2)
    read(checks, [(low, low + 1) for low in range(64, 264, 2)])
    assert len(checks._pieces) == len(checks._ends) == 4
    assert read(checks, [(64, 264)]) != []


@pytest.mark.parametrize("part", [False, True])
def test_a_file_says_which_bytes_changed(tmp_path: Path, part: bool) -> None:
    path = tmp_path / "weights"
    path.write_bytes(DATA)
    file = FilePart(SourceFile(path), "member", 10, 300) if part else SourceFile(path)
    begin = 54 if part else 64
    file.expect(begin, 200, crc32(DATA[64:264]), "x")
    assert file.pread(100, begin) + file.pread(100, begin + 100) == DATA[64:264]
    file.expect(begin, 200, 0x1234, "x")
    file.pread(100, begin)
    with pytest.raises(CorruptCheckpoint) as caught:
        file.pread(100, begin + 100)
    assert str(caught.value) == (
        f"{file.path}: x (bytes {begin}..{begin + 200}) has checksum {crc32(DATA[64:264]):08x}, but 00001234 "
        "was stored with it; it changed after it was written; copy the file again"
    )
