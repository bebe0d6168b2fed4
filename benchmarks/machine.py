"""How much of a machine a conversion uses: one worker and more, beside parallel copies of the same bytes.

``xargs -P N cp`` copies the output's own files, so both write the same bytes to the same number of files.
"write s" and GB/s are until the last write returns, as ``cp`` counts. "whole s" is the command with start,
plan and flush to the disk, beside it the copy with a flush: where there is a disk, this is what can be
compared, as a conversion has the disk write meanwhile.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import measure
import models

HEAD = (
    "case",
    "workers",
    "GB",
    "files",
    "write s",
    "GB/s",
    "cp GB/s",
    "share",
    "whole s",
    "cp whole s",
    "anon MiB",
)
#: of the parallel copy, with as many workers as the most of them
TARGET, ANON_MIB = 0.7, 256.0
#: by name: what is read, the command, and its options
CASES = {
    "hf2nemo2": ("hf", "hf2nemo2", ()),
    "nemo2hf": ("hf2nemo2", "nemo2hf", ()),
    "reshard": ("hf2nemo2", "reshard", ("--tp", "2", "--pp", "2")),
    "to-float32": ("hf", "hf2nemo2", ("--dtype", "float32")),
    "to-bfloat16": ("to-float32", "nemo2hf", ("--dtype", "bfloat16")),
}
#: runs a command and says how long the engine took, from its start to its last write
CHILD = """
import json, sys, time
from nemoconv.resharding import devices, execute
whole, took = execute.execute, []
def timed(*arguments, **options):
    started = time.perf_counter()
    try:
        return whole(*arguments, **options)
    finally:
        took.append(time.perf_counter() - started)
execute.execute = timed
from nemoconv.cli import main
sys.argv = ["nemoconv", *sys.argv[1:]]
try:
    main()
finally:
    print("\\nMOVED", sum(took))
"""


@dataclass(frozen=True, slots=True)
class Result:
    """One case with one number of workers: seconds of each round."""

    case: str
    workers: int
    nbytes: int
    files: int
    moved: list[float]
    whole: list[float]
    copied: list[float]
    flushed: list[float]
    anon_nbytes: int

    @property
    def speed(self) -> float:
        return self.nbytes / 1e9 / statistics.median(self.moved)

    @property
    def copy_speed(self) -> float:
        return self.nbytes / 1e9 / statistics.median(self.copied)

    def row(self) -> list[str]:
        return [
            self.case,
            str(self.workers),
            f"{self.nbytes / 1e9:.2f}",
            str(self.files),
            f"{statistics.median(self.moved):.2f}",
            f"{self.speed:.2f}",
            f"{self.copy_speed:.2f}",
            f"{self.speed / self.copy_speed:.2f}",
            f"{statistics.median(self.whole):.2f}",
            f"{statistics.median(self.flushed):.2f}",
            f"{self.anon_nbytes / measure.MIB:.0f}",
        ]


def copy(source: Path, target: Path, workers: int) -> tuple[float, float]:
    """Seconds that ``xargs -P`` takes to copy every file of a folder, and until they are on the disk."""
    script = 'cd "$0" && find . -type f -print0 | xargs -0 -P "$2" -I{} cp {} "$1"'
    target.mkdir()
    started = time.perf_counter()
    measure.run(["sh", "-c", script, str(source), str(target), str(workers)])
    copied = time.perf_counter() - started
    measure.run(["sh", "-c", 'find "$0" -type f -exec sync {} +', str(target)])
    return copied, time.perf_counter() - started


def convert(source: Path, case: str, out: Path, workers: int, *more: str) -> tuple[float, measure.Usage]:
    """Seconds of the engine, and the command's whole use."""
    _, command, options = CASES[case]
    arguments = [command, source, out, *options, "--workers", workers, "--no-progress", "-q", *more]
    usage = measure.run([sys.executable, "-c", CHILD, *map(str, arguments)])
    return float(usage.output.rsplit("MOVED", 1)[1]), usage


def measure_case(case: str, work: Path, counts: Sequence[int], rounds: int) -> list[Result]:
    source, out, copied = work / CASES[case][0], work / "out", work / "copied"
    kept = work / case
    if not kept.exists():
        convert(source, case, kept, max(counts))
    measure.warm(source)
    results = []
    for workers in counts:
        moved, whole, copies, flushed, anon = [], [], [], [], 0
        for _ in range(rounds):
            seconds, usage = convert(source, case, out, workers)
            moved.append(seconds)
            whole.append(usage.wall)
            anon = max(anon, usage.anon_nbytes)
            measure.remove(out)
            seconds, until_disk = copy(kept, copied, workers)
            copies.append(seconds)
            flushed.append(until_disk)
            measure.remove(copied)
        files = [path for path in kept.rglob("*") if path.is_file()]
        results.append(
            Result(case, workers, measure.nbytes(kept), len(files), moved, whole, copies, flushed, anon)
        )
        print(" | ".join(results[-1].row()), file=sys.stderr, flush=True)
    return results


def checks(results: Sequence[Result]) -> list[measure.Check]:
    found = []
    for case in dict.fromkeys(result.case for result in results):
        most = max((result for result in results if result.case == case), key=lambda result: result.workers)
        share = most.copy_speed / most.speed
        found.append(measure.Check(f"{case}: time, with {most.workers} workers", share, 1 / TARGET, "x cp"))
        found.append(
            measure.Check(f"{case}: peak anonymous memory", most.anon_nbytes / measure.MIB, ANON_MIB, "MiB")
        )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=models.SIZES, default="8B", help="default 8B")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--only", action="append", choices=CASES, metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--work", type=Path, help="where temporary data go; default beside the cwd")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure to FILE")
    options = parser.parse_args()
    results: list[Result] = []
    with measure.workspace(options.work) as work:
        facts = measure.machine(work)
        models.write(work / "hf", models.SIZES[options.size], shard_nbytes=1 << 30)
        for case in options.only or ["hf2nemo2", "nemo2hf", "reshard"]:
            for needed in _needed(case):
                if not (work / needed).exists():
                    convert(work / CASES[needed][0], needed, work / needed, max(options.workers))
            results += measure_case(case, work, options.workers, options.rounds)
    return measure.publish(
        facts, HEAD, [result.row() for result in results], checks(results), results, options.json
    )


def _needed(case: str) -> list[str]:
    """The cases whose outputs a case reads, first things first."""
    source = CASES[case][0]
    return [] if source not in CASES else [*_needed(source), source]


if __name__ == "__main__":
    sys.exit(main())
