"""What a plan refuses before a byte is written, and what it counts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nemoconv.errors import MappingError
from nemoconv.resharding.plan import Job, Payload, Plan, Target
from nemoconv.stores.files import SourceFile
from nemoconv.stores.output import OutputFile
from nemoconv.tensors.dtypes import BY_NAME
from nemoconv.tensors.stored import Extent

BF16, F32 = BY_NAME["bfloat16"], BY_NAME["float32"]


def job(sources, targets, *, dtype=BF16, **options):
    """Boxes are (start, shape)."""
    return Job(
        "the.weight",
        (4, 6),
        BF16,
        dtype,
        tuple(Extent(None, 0, start, shape, (12, 2)) for start, shape in sources),
        tuple(Target(None, 0, start, shape, (12, 2)) for start, shape in targets),
        **options,
    )


WHOLE = ((0, 0), (4, 6))
TOP, BOTTOM, LEFT = ((0, 0), (2, 6)), ((2, 0), (2, 6)), ((0, 0), (4, 3))


@pytest.mark.parametrize(
    ("sources", "targets", "message"),
    [
        ([TOP], [WHOLE], "the.weight: 12 of 24 target elements have no source"),
        ([], [WHOLE], "the.weight: 24 of 24 target elements have no source"),
        ([WHOLE], [LEFT], "the.weight: 12 of 24 source elements have no target"),
        ([TOP, LEFT], [WHOLE], "the.weight: two source pieces overlap"),
        ([WHOLE, WHOLE], [WHOLE], "the.weight: two source pieces overlap"),
        ([WHOLE], [TOP, BOTTOM, LEFT], "the.weight: two target pieces overlap"),
    ],
)
def test_check_refuses(sources, targets, message):
    plan = Plan([job([WHOLE], [WHOLE]), job(sources, targets)])
    with pytest.raises(MappingError) as caught:
        plan.check()
    assert caught.value.message == message
    assert caught.value.exit_code == 5


def test_overlaps_are_refused_whatever_is_allowed():
    for sources, targets in ([[TOP, LEFT], [WHOLE]], [[WHOLE], [TOP, LEFT]]):
        with pytest.raises(MappingError, match="overlap"):
            job(sources, targets, fill=True, discard=True).check()


def test_check_accepts_every_tiling():
    job([WHOLE], [TOP, BOTTOM]).check()
    job([TOP, BOTTOM], [LEFT, ((0, 3), (4, 3))]).check()
    job([TOP], [WHOLE], fill=True).check()
    job([WHOLE], [TOP], discard=True).check()
    Job("scalar", (), BF16, BF16, (Extent(None, 0, (), (), ()),), (Target(None, 0, (), (), ()),)).check()


def test_fill_does_not_allow_what_discard_would():
    with pytest.raises(MappingError, match="12 of 24 source elements have no target"):
        job([WHOLE], [LEFT], fill=True).check()
    with pytest.raises(MappingError, match="12 of 24 target elements have no source"):
        job([TOP], [WHOLE], discard=True).check()


def test_a_plan_counts(tmp_path):
    (tmp_path / "in").write_bytes(bytes(96))
    file, output = SourceFile(tmp_path / "in"), OutputFile(str(tmp_path / "out"), "out")
    payload = Payload("x", output, 0, 96)
    a = job([TOP, BOTTOM], [LEFT, ((0, 3), (4, 3))], dtype=F32)
    a = replace(a, sources=tuple(extent._replace(file=file) for extent in a.sources))
    b = Job(
        "b", (2,), BF16, BF16, (Extent(file, 7, (0,), (2,), (2,)),), (Target(payload, 0, (0,), (2,), (2,)),)
    )
    plan = Plan([a, b, b])
    assert a.moves == 4
    assert plan.moves == 6
    assert plan.read_nbytes == 24 * 2 + 4 + 4
    assert plan.write_nbytes == 24 * 4 + 4 + 4
    assert Plan([b, b]).sources() == [file]
    assert Plan([b, b]).outputs() == [output]
    assert b.position == (str(tmp_path / "in"), 7)
    assert job([], [WHOLE], fill=True).position == ("", 0)
    assert payload.crc32 is None
    file.close()
