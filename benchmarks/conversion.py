"""Conversions against ``cp -r`` of the bytes they write: seconds to the disk, CPU-seconds, peak memory."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import measure
import models
from measure import MIB, Check, Summary, Usage


@dataclass(frozen=True, slots=True)
class Case:
    """One conversion of an input. ``copied`` is an input with as many bytes as the output."""

    name: str
    source: str
    arguments: tuple[str, ...]
    copied: str
    targets: bool = False

    @property
    def keeps_bits(self) -> bool:
        return "--dtype" not in self.arguments


CASES = (
    Case("hf2nemo2", "hf", ("hf2nemo2",), "hf", targets=True),
    Case("nemo2hf", "nemo2", ("nemo2hf",), "nemo2", targets=True),
    Case("hf2nemo2-tp8", "hf", ("hf2nemo2", "--tp", "8"), "hf"),
    Case("nemo2hf-tp8", "nemo2-tp8", ("nemo2hf",), "nemo2-tp8"),
    Case("to-float32", "hf", ("hf2nemo2", "--dtype", "float32"), "hf-float32"),
    Case("to-bfloat16", "hf-float32", ("hf2nemo2", "--dtype", "bfloat16"), "hf"),
)
VERIFY = "verify"
#: the size that the targets are for
TARGET_SIZE = "1.2B"
WARM_RATIO, COLD_RATIO, CPU_RATIO, ANON_MIB = 1.25, 1.4, 2.0, 64.0
HEAD = ("case", "size", "cache", "GB", "s", "cp s", "/ cp", "CPU s", "cp CPU s", "/ cp", "anon MiB", "GB/s")


@dataclass(frozen=True, slots=True)
class Result:
    """All rounds of one case. ``nbytes`` counts what is written, for verify what is read."""

    case: str
    size: str
    cache: str
    nbytes: int
    copies: list[Usage]
    ours: list[Usage]

    def wall(self) -> float:
        return median(self.ours, "wall") / median(self.copies, "wall")

    def cpu(self) -> float:
        return median(self.ours, "cpu") / median(self.copies, "cpu")

    def anon(self) -> float:
        """Peak over all rounds, in MiB."""
        return max(usage.anon_nbytes for usage in self.ours) / MIB

    def row(self) -> list[str]:
        gigabytes = self.nbytes / 1e9
        return [
            self.case,
            self.size,
            self.cache,
            f"{gigabytes:.2f}",
            str(Summary.of([usage.wall for usage in self.ours])),
            str(Summary.of([usage.wall for usage in self.copies])),
            f"{self.wall():.2f}",
            str(Summary.of([usage.cpu for usage in self.ours])),
            str(Summary.of([usage.cpu for usage in self.copies])),
            f"{self.cpu():.2f}",
            f"{self.anon():.0f}",
            f"{gigabytes / median(self.ours, 'wall'):.2f}",
        ]


def median(usages: Sequence[Usage], name: str) -> float:
    return Summary.of([getattr(usage, name) for usage in usages]).median


class Inputs:
    """The checkpoints of one size, each built when first asked for."""

    def __init__(self, work: Path, size: str) -> None:
        self._work, self._config = work / size, models.SIZES[size]

    def __getitem__(self, name: str) -> Path:
        path = self._work / name
        if not path.exists():
            print(f"building {path}", file=sys.stderr)
            self._build(name, path)
        return path

    def _build(self, name: str, path: Path) -> None:
        kind, _, variant = name.partition("-")
        if kind == "hf":
            models.write(path, {**self._config, "dtype": variant or "bfloat16"})
        else:
            layout = ("--tp", variant.removeprefix("tp")) if variant else ()
            measure.run(measure.program("hf2nemo2", self["hf"], path, *layout, "-q"))


def measure_case(case: Case, size: str, inputs: Inputs, out: Path, count: int, *, cold: bool) -> Result:
    source, copied = inputs[case.source], inputs[case.copied]

    def before() -> None:
        measure.remove(out)
        for folder in {source, copied}:
            (measure.drop if cold else measure.warm)(folder)

    command = measure.program(case.arguments[0], source, out, *case.arguments[1:], "--no-progress", "-q")
    before()
    measure.run([*command, *(("--verify",) if case.keeps_bits else ())])  # is it right; and a warm-up
    written = measure.nbytes(out)
    copies, ours = measure.rounds(count, before, measure.copy(copied, out), command)
    measure.remove(out)
    return Result(case.name, size, "cold" if cold else "warm", written, copies, ours)


def measure_verify(size: str, inputs: Inputs, count: int, *, cold: bool) -> Result:
    """``nemoconv verify`` of a NeMo 2 directory, against ``cat`` of its files to nowhere."""
    source = inputs["nemo2"]
    cat = ["sh", "-c", 'find "$0" -type f -exec cat {} + >/dev/null', str(source)]

    def before() -> None:
        (measure.drop if cold else measure.warm)(source)

    command = measure.program("verify", source, "--no-progress", "-q")
    print(f"{VERIFY} {size} {'cold' if cold else 'warm'}", file=sys.stderr)
    cats, ours = measure.rounds(count, before, cat, command)
    name = f"{VERIFY} (against cat)"
    return Result(name, size, "cold" if cold else "warm", measure.nbytes(source), cats, ours)


def checks(results: Sequence[Result]) -> list[Check]:
    """The targets: those of one conversion, and that memory is flat and time linear in the size."""
    found = []
    for case in (case.name for case in CASES if case.targets):
        for result in (r for r in results if r.case == case):
            what = f"{case} {result.size} {result.cache}"
            if result.size == TARGET_SIZE:
                ratio = COLD_RATIO if result.cache == "cold" else WARM_RATIO
                found.append(Check(f"{what}: time", result.wall(), ratio, "x cp"))
                found.append(Check(f"{what}: CPU time", result.cpu(), CPU_RATIO, "x cp"))
            found.append(Check(f"{what}: peak anonymous memory", result.anon(), ANON_MIB, "MiB"))
        sizes = sorted((r for r in results if r.case == case and r.cache == "warm"), key=lambda r: r.nbytes)
        if len(sizes) > 1:
            least, most = sizes[0], sizes[-1]
            what = f"{case} from {least.size} to {most.size}"
            per_byte = [median(r.ours, "cpu") / r.nbytes for r in (least, most)]
            found += [
                Check(f"{what}: growth of peak memory", most.anon() - least.anon(), 8, "MiB"),
                Check(f"{what}: growth of CPU time per byte", per_byte[1] / per_byte[0], 1.25, "x"),
                Check(f"{what}: growth of time per byte, over cp's", most.wall() / least.wall(), 1.25, "x"),
            ]
    return found


def main() -> int:
    names = [*(case.name for case in CASES), VERIFY]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", action="append", choices=models.SIZES, help="may be repeated; default 1.2B")
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--cold", action="store_true", help="also with the source out of the page cache")
    parser.add_argument("--only", action="append", choices=names, metavar="CASE", help=", ".join(names))
    parser.add_argument("--work", type=Path, help="where temporary data go; default beside the cwd")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure to FILE")
    options = parser.parse_args()
    wanted = options.only or names
    results: list[Result] = []
    with measure.workspace(options.work) as work:
        facts = measure.machine(work)
        for size in options.size or [TARGET_SIZE]:
            inputs = Inputs(work, size)
            for cold in (False, True) if options.cold else (False,):
                for case in (case for case in CASES if case.name in wanted):
                    print(f"{case.name} {size} {'cold' if cold else 'warm'}", file=sys.stderr)
                    results.append(measure_case(case, size, inputs, work / "out", options.rounds, cold=cold))
                if VERIFY in wanted:
                    results.append(measure_verify(size, inputs, options.rounds, cold=cold))
            measure.remove(work / size)
    rows = [result.row() for result in results]
    return measure.publish(facts, HEAD, rows, checks(results), results, options.json)


if __name__ == "__main__":
    sys.exit(main())
