"""Tiles of jobs that turn a matrix in their target: they cover it once, and write no crumbs."""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy
import pytest

from nemoconv.resharding import execute, worker
from nemoconv.resharding.plan import Job, Payload, Plan, Target
from nemoconv.resharding.tiles import RUN, square_tiles, turns_in_target
from nemoconv.stores.files import SourceFile
from nemoconv.stores.output import OutputFile
from nemoconv.tensors.dtypes import BY_NAME
from nemoconv.tensors.stored import Extent, contiguous_strides

BF16 = BY_NAME["bfloat16"]
#: (half ffn) hidden in the source, hidden (ffn half) in the target: gpt-oss
HALF, FFN, HIDDEN = 2, 300, 170


def interleaved(source: SourceFile | None, payload: Payload | None) -> Job:
    """Gate and up, one after the other, to alternating columns."""
    shape = (HALF, FFN, HIDDEN)
    halves = tuple(
        Extent(source, half * FFN * HIDDEN * 2, (half, 0, 0), (1, FFN, HIDDEN), contiguous_strides(shape, 2))
        for half in range(HALF)
    )
    turned = Target(payload, 0, (0, 0, 0), shape, (2, 2 * HALF, 2 * HALF * FFN))  # type: ignore[arg-type]
    return Job("x", shape, BF16, BF16, halves, (turned,))


@pytest.mark.parametrize("limit", [1, 7, 100, 5000, 10**6])
def test_tiles_cover_the_job_once(limit: int) -> None:
    job = interleaved(None, None)  # type: ignore[arg-type]
    seen = numpy.zeros(job.shape, numpy.uint8)
    for start, shape in square_tiles(job, limit):
        assert prod(shape) <= limit
        seen[tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))] += 1
    assert (seen == 1).all()


def test_tiles_are_whole_where_the_target_is_dense() -> None:
    _, shape = next(square_tiles(interleaved(None, None), 40_000))  # type: ignore[arg-type]
    assert shape[0] == HALF
    assert shape[0] * shape[1] == min(RUN, HALF * FFN)
    assert shape[2] == 40_000 // (shape[0] * shape[1])


def test_only_jobs_that_turn_are_cut_so() -> None:
    job = interleaved(None, None)  # type: ignore[arg-type]
    assert turns_in_target(job)
    (target,) = job.targets
    plain = Target(target.payload, 0, target.start, job.shape, contiguous_strides(job.shape, 2))
    assert not turns_in_target(Job("x", job.shape, BF16, BF16, job.sources, (plain,)))
    assert not turns_in_target(Job("x", job.shape, BF16, BF16, (), (target,), fill=True))


def test_what_is_written_is_the_turned_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = numpy.arange(HALF * FFN * HIDDEN, dtype=numpy.uint16)
    (tmp_path / "in").write_bytes(values.tobytes())
    output = OutputFile(str(tmp_path / "out"), "out")
    output.size = values.nbytes
    payload = Payload("x", output, 0, values.nbytes)
    writes = []
    whole = worker.write_views
    monkeypatch.setattr(
        worker, "write_views", lambda *args: writes.append(sum(map(len, args[2]))) or whole(*args)
    )
    plan = Plan([interleaved(SourceFile(tmp_path / "in"), payload)])
    plan.check()
    execute.execute(plan, execute.Limits(1, 64 << 10))
    output.close()
    expected = values.reshape(HALF, FFN, HIDDEN).transpose(2, 1, 0).tobytes()
    assert (tmp_path / "out").read_bytes() == expected
    assert len(writes) <= 2 * HIDDEN  # not one for each of 102,000 elements
    assert sum(writes) == values.nbytes
