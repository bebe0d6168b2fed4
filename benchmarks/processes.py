"""One conversion by several processes of one machine, beside one process and ``cp -r`` of the same bytes."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import measure
import models
from measure import Check, Summary

HEAD = ("case", "processes", "GB", "s", "cp s", "/ one process", "CPU s", "GB/s")
#: what of (convert --to nemo2 --tp 8): eight files to share
CASES = {"same dtype": (), "to bfloat16": ("--dtype", "bfloat16")}


def together(count: int, command: list[str]) -> list[str]:
    """The command as ranks of a job, started at once as a launcher would; fails if one of them does."""
    if count == 1:
        return command
    line = shlex.join([*command, "--ranks"])
    ranks = [f"RANK={rank} WORLD_SIZE={count} {line} & p{rank}=$!" for rank in range(count)]
    return ["sh", "-c", "\n".join([*ranks, *(f"wait $p{rank} || exit 1" for rank in range(count))])]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--size", choices=models.SIZES, default="1.2B", help="written as float32; default 1.2B"
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4, 8], help="default 1 2 4 8")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--work", type=Path, help="where temporary data go; default beside the cwd")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure to FILE")
    options = parser.parse_args()
    counts = sorted({1, *options.processes})
    rows, raw = [], {}
    with measure.workspace(options.work) as work:
        facts = measure.machine(work)
        source, out = work / "hf", work / "out"
        models.write(source, {**models.SIZES[options.size], "dtype": "float32"})

        def before() -> None:
            measure.remove(out)
            measure.warm(source)

        for case, cast in CASES.items():
            command = measure.program("convert", source, out, "--to", "nemo2", "--tp", "8", *cast, "-q")
            if not cast:
                before()
                measure.run([*together(max(counts), [*command, "--verify"])])  # is it right; and a warm-up
            before()
            measure.run(command)
            size = measure.nbytes(out)
            commands = [measure.copy(source, out), *(together(count, command) for count in counts)]
            copies, *ours = measure.rounds(options.rounds, before, *commands)
            alone = Summary.of([usage.wall for usage in ours[0]]).median
            for count, used in zip(counts, ours, strict=True):
                wall = Summary.of([usage.wall for usage in used])
                rows.append(
                    [
                        case,
                        str(count),
                        f"{size / 1e9:.2f}",
                        str(wall),
                        str(Summary.of([usage.wall for usage in copies])) if not cast else "",
                        f"{wall.median / alone:.2f}",
                        str(Summary.of([usage.cpu for usage in used])),
                        f"{size / 1e9 / wall.median:.2f}",
                    ]
                )
                raw[f"{case}, {count} processes"] = used
            raw[f"{case}, cp"] = copies
    checks: list[Check] = []  # what to expect depends on the cores and on the file system
    return measure.publish(facts, HEAD, rows, checks, raw, options.json)


if __name__ == "__main__":
    sys.exit(main())
