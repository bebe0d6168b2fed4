"""Planning a 405B-shaped checkpoint: seconds and memory. The data are holes, so no disk is needed."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import measure
import models
from measure import MIB, Check, Summary

LAYOUT = ("--tp", "8", "--pp", "6")
SECONDS, RSS_MIB = 5.0, 300.0
HEAD = ("plan", "layout", "TB", "tensors out", "moves", "s", "CPU s", "peak RSS MiB", "anon MiB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--work", type=Path, help="where temporary data go; default beside the cwd")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure to FILE")
    options = parser.parse_args()
    rows, checks, raw = [], [], {}
    with measure.workspace(options.work) as work:
        facts = measure.machine(work)
        models.write(work / "hf", models.LLAMA_405B, sparse=True)
        models.write_nemo2(work / "hf", work / "nemo2")
        models.write_nemo2(work / "hf", work / "nemo2-tp8", tensor_parallel_size=8, pipeline_parallel_size=6)
        for name, source, to, layout in (
            ("HF -> NeMo 2", "hf", "nemo2", ()),
            ("HF -> NeMo 2", "hf", "nemo2", LAYOUT),
            ("NeMo 2 -> HF", "nemo2", "hf", ()),
            ("NeMo 2 tp8 pp6 -> HF", "nemo2-tp8", "hf", ()),
            ("NeMo 2 tp8 pp6 -> NeMo 2", "nemo2-tp8", "nemo2", ("--tp", "4", "--pp", "2")),
        ):
            print(name, *layout, file=sys.stderr)
            command = measure.program("plan", work / source, work / "out", "--to", to, *layout, "--json")
            used = [measure.run(command) for _ in range(options.rounds)]
            report = json.loads(used[-1].output)
            wall = Summary.of([usage.wall for usage in used])
            rss = max(usage.rss_nbytes for usage in used) / MIB
            rows.append(
                [
                    name,
                    " ".join(layout) or "tp1 pp1",
                    f"{report['write_nbytes'] / 1e12:.2f}",
                    f"{report['tensors_out']:,}",
                    f"{report['moves']:,}",
                    str(wall),
                    str(Summary.of([usage.cpu for usage in used])),
                    f"{rss:.0f}",
                    f"{max(usage.anon_nbytes for usage in used) / MIB:.0f}",
                ]
            )
            what = f"405B {name} {' '.join(layout)}".rstrip()
            checks.append(Check(f"{what}: time", wall.median, SECONDS, "s"))
            checks.append(Check(f"{what}: peak RSS", rss, RSS_MIB, "MiB"))
            raw[what] = used
    return measure.publish(facts, HEAD, rows, checks, raw, options.json)


if __name__ == "__main__":
    sys.exit(main())
