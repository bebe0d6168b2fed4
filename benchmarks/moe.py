"""Mixtures of experts: 128 of them against ``cp -r``, and plans of released shapes from headers alone."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import conversion
import measure
import models
from conversion import Case, Inputs, Result
from measure import MIB, Check, Summary

CASES = (
    Case("hf2nemo2", "hf", ("hf2nemo2",), "hf", targets=True),
    Case("hf2nemo2-ep8", "hf", ("hf2nemo2", "--ep", "8"), "hf"),
    Case("nemo2hf", "nemo2", ("nemo2hf",), "nemo2", targets=True),
)
SHAPES = {"Qwen3-235B": models.QWEN3_235B, "DeepSeek-V3": models.DEEPSEEK_V3}
SIZES = ("moe-0.1B", "moe-1.6B")
RATIO, SECONDS, RSS_MIB, TENSOR_US = 1.3, 10.0, 400.0, 50.0
HEAD = ("plan", "TB", "tensors in", "s", "us a tensor", "CPU s", "peak RSS MiB")


def plans(work: Path, count: int) -> tuple[list[list[str]], list[Check]]:
    """Plans to NeMo 2 of checkpoints whose data are holes. What a start of Python takes is not in the time of
    a tensor, which the report gives."""
    rows, checks = [], []
    for name, config in SHAPES.items():
        print(f"plan {name}", file=sys.stderr)
        source = work / name
        models.write(source, config, sparse=True)
        command = measure.program("plan", source, work / "out", "--to", "nemo2", "--json")
        command += ["--max-memory", "2GiB"]
        used = [measure.run(command) for _ in range(count)]
        reports = [json.loads(usage.output) for usage in used]
        tensors = reports[0]["tensors_in"]
        wall = Summary.of([usage.wall for usage in used])
        each = Summary.of([report["plan_seconds"] / tensors * 1e6 for report in reports])
        rss = max(usage.rss_nbytes for usage in used) / MIB
        rows.append(
            [
                name,
                f"{reports[0]['write_nbytes'] / 1e12:.2f}",
                f"{tensors:,}",
                str(wall),
                str(each),
                str(Summary.of([usage.cpu for usage in used])),
                f"{rss:.0f}",
            ]
        )
        checks += [
            Check(f"plan of {name}: time", wall.median, SECONDS, "s"),
            Check(f"plan of {name}: time a tensor", each.median, TENSOR_US, "us"),
            Check(f"plan of {name}: peak RSS", rss, RSS_MIB, "MiB"),
        ]
        measure.remove(source)
    return rows, checks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="moe-1.6B", help="default moe-1.6B, 3.3 GB")
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--no-plans", action="store_true", help="leave out the plans")
    parser.add_argument("--work", type=Path, help="where temporary data go; default beside the cwd")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure to FILE")
    options = parser.parse_args()
    results: list[Result] = []
    with measure.workspace(options.work) as work:
        facts = measure.machine(work)
        inputs = Inputs(work, options.size)
        for case in CASES:
            print(f"{case.name} {options.size}", file=sys.stderr)
            results.append(
                conversion.measure_case(case, options.size, inputs, work / "out", options.rounds, cold=False)
            )
        measure.remove(work / options.size)
        rows, checks = ([], []) if options.no_plans else plans(work, options.rounds)
    checks += [
        Check(f"{result.case} {result.size}: time", result.wall(), RATIO, "x cp")
        for result in results
        if next(case.targets for case in CASES if case.name == result.case)
    ]
    if rows:
        print(measure.table(HEAD, rows) + "\n")
    return measure.publish(
        facts, conversion.HEAD, [result.row() for result in results], checks, results, options.json
    )


if __name__ == "__main__":
    sys.exit(main())
