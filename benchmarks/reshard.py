"""Changes of layout against ``cp -r`` of the same bytes; and the plan of a 70B-shaped one, whose data are
holes."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import measure
import models
from measure import MIB, Check, Summary, Usage

RATIO, CPU_RATIO, ANON_MIB = 1.25, 2.0, 64.0
PLAN_SECONDS, PLAN_RSS_MIB = 5.0, 300.0
HEAD = ("case", "size", "cache", "GB", "s", "cp s", "/ cp", "CPU s", "cp CPU s", "/ cp", "anon MiB", "GB/s")
PLAN_HEAD = ("70B plan", "GB", "tensors out", "moves", "s", "CPU s", "peak RSS MiB", "anon MiB")
#: Llama 3 70B
LLAMA_70B = {
    **models.LLAMA_1B,
    "num_hidden_layers": 80,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "head_dim": 128,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True, slots=True)
class Case:
    """A change of layout: of a NeMo 2 directory at ``tp``, by these options."""

    name: str
    tp: int
    options: tuple[str, ...]


CASES = (
    Case("tp1 -> tp2", 1, ("--tp", "2")),
    Case("tp1 -> tp8", 1, ("--tp", "8")),
    Case("tp1 -> pp2", 1, ("--pp", "2")),
    Case("tp2 -> pp2", 2, ("--tp", "1", "--pp", "2")),
    Case("tp8 -> tp1", 8, ("--tp", "1")),
)
PLANS = (
    Case("tp1 -> tp8 pp4", 1, ("--tp", "8", "--pp", "4")),
    Case("tp8 -> tp2 pp8 vpp2", 8, ("--tp", "2", "--pp", "8", "--vpp", "2")),
)


def measure_case(
    case: Case, size: str, work: Path, count: int, *, cold: bool
) -> tuple[list[str], list[Check]]:
    source, out = _nemo(work / size, models.SIZES[size], case.tp), work / "out"

    def before() -> None:
        measure.remove(out)
        (measure.drop if cold else measure.warm)(source)

    command = measure.program("reshard", source, out, *case.options, "--no-progress", "-q")
    before()
    measure.run([*command, "--verify"])  # is it right; and a warm-up
    nbytes = measure.nbytes(out)
    copies, ours = measure.rounds(count, before, measure.copy(source, out), command)
    measure.remove(out)
    cache = "cold" if cold else "warm"
    wall, cpu = (_median(ours, name) / _median(copies, name) for name in ("wall", "cpu"))
    anon = max(usage.anon_nbytes for usage in ours) / MIB
    row = [
        case.name,
        size,
        cache,
        f"{nbytes / 1e9:.2f}",
        str(Summary.of([usage.wall for usage in ours])),
        str(Summary.of([usage.wall for usage in copies])),
        f"{wall:.2f}",
        str(Summary.of([usage.cpu for usage in ours])),
        str(Summary.of([usage.cpu for usage in copies])),
        f"{cpu:.2f}",
        f"{anon:.0f}",
        f"{nbytes / 1e9 / _median(ours, 'wall'):.2f}",
    ]
    what = f"reshard {case.name} {size} {cache}"
    checks = [Check(f"{what}: peak anonymous memory", anon, ANON_MIB, "MiB")]
    if not cold:
        checks.append(Check(f"{what}: time", wall, RATIO, "x cp"))
        checks.append(Check(f"{what}: CPU time", cpu, CPU_RATIO, "x cp"))
    return row, checks


def _median(usages: list[Usage], name: str) -> float:
    return Summary.of([getattr(usage, name) for usage in usages]).median


def _nemo(folder: Path, config: dict[str, object], tp: int) -> Path:
    """A NeMo 2 directory of random weights, built when first asked for."""
    path = folder / f"nemo2-tp{tp}"
    if not path.exists():
        print(f"building {path}", file=sys.stderr)
        if not (folder / "hf").exists():
            models.write(folder / "hf", config)
        measure.run(measure.program("hf2nemo2", folder / "hf", path, "--tp", str(tp), "-q"))
    return path


def measure_plan(case: Case, work: Path, count: int) -> tuple[list[str], list[Check]]:
    """Seconds and memory of ``reshard --dry-run``."""
    source = work / f"sparse-tp{case.tp}"
    if not source.exists():
        if not (work / "sparse").exists():
            models.write(work / "sparse", LLAMA_70B, sparse=True)
        models.write_nemo2(work / "sparse", source, tensor_parallel_size=case.tp)
    command = measure.program("reshard", source, work / "out", *case.options, "--dry-run", "--json")
    used = [measure.run(command) for _ in range(count)]
    report = json.loads(used[-1].output)
    wall = Summary.of([usage.wall for usage in used])
    rss = max(usage.rss_nbytes for usage in used) / MIB
    row = [
        case.name,
        f"{report['write_nbytes'] / 1e9:.0f}",
        f"{report['tensors_out']:,}",
        f"{report['moves']:,}",
        str(wall),
        str(Summary.of([usage.cpu for usage in used])),
        f"{rss:.0f}",
        f"{max(usage.anon_nbytes for usage in used) / MIB:.0f}",
    ]
    return row, [
        Check(f"70B plan {case.name}: time", wall.median, PLAN_SECONDS, "s"),
        Check(f"70B plan {case.name}: peak RSS", rss, PLAN_RSS_MIB, "MiB"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=models.SIZES, default="1.2B", help="default 1.2B")
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--cold", action="store_true", help="also with the source out of the page cache")
    parser.add_argument("--plans-only", action="store_true", help="only the plans, which need no disk")
    parser.add_argument("--work", type=Path, help="where temporary data go; default beside the cwd")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure to FILE")
    options = parser.parse_args()
    with measure.workspace(options.work) as work:
        facts = measure.machine(work)
        plans = [measure_plan(case, work, options.rounds) for case in PLANS]
        found = []
        for cold in (False, True) if options.cold else (False,):
            for case in () if options.plans_only else CASES:
                print(f"{case.name} {options.size} {'cold' if cold else 'warm'}", file=sys.stderr)
                found.append(measure_case(case, options.size, work, options.rounds, cold=cold))
    checks = [check for _, held in (*plans, *found) for check in held]
    raw = {"cases": [row for row, _ in found], "plans": [row for row, _ in plans]}
    if found:
        print(measure.table(HEAD, [row for row, _ in found]) + "\n")
    return measure.publish(facts, PLAN_HEAD, [row for row, _ in plans], checks, raw, options.json)


if __name__ == "__main__":
    sys.exit(main())
