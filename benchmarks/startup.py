"""What starting the program costs: CPU-seconds of short commands, and which large packages they import."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import measure
import models
from measure import MIB, Check, Summary

LARGE = ("torch", "transformers", "huggingface_hub", "safetensors", "numpy", "ml_dtypes", "yaml", "tqdm")
HEAD = ("command", "CPU s", "wall s", "peak RSS MiB", "modules", "of these large packages")
HELP_SECONDS, INSPECT_SECONDS = 0.15, 0.3


def imported(command: list[str]) -> list[str]:
    """Names of every module that a command imports, in order."""
    printed = measure.run([command[0], "-X", "importtime", *command[1:]]).output
    return re.findall(r"^import time: +\d+ \| +\d+ \| +(\S+)$", printed, re.MULTILINE)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="default 9")
    parser.add_argument("--work", type=Path, help="where temporary data go; default beside the cwd")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure to FILE")
    options = parser.parse_args()
    rows, checks, raw = [], [], {}
    with measure.workspace(options.work) as work:
        facts = measure.machine(work)
        models.write(work / "hf", models.SIZES["1.2B"], sparse=True)
        models.write_nemo2(work / "hf", work / "nemo2")
        commands = {
            "--help": (("--help",), HELP_SECONDS),
            "hf2nemo2 --help": (("hf2nemo2", "--help"), HELP_SECONDS),
            "supported": (("supported",), None),
            "inspect HF": (("inspect", work / "hf"), INSPECT_SECONDS),
            "inspect NEMO2": (("inspect", work / "nemo2"), INSPECT_SECONDS),
        }
        python = [sys.executable, "-c", "pass"]
        listed: dict[str, tuple[list[str], float | None]] = {"python -c pass": (python, None)}
        listed |= {name: (measure.program(*words), limit) for name, (words, limit) in commands.items()}
        for name, (command, limit) in listed.items():
            modules = imported(command)  # and a warm-up
            used = [measure.run(command) for _ in range(options.rounds)]
            cpu = Summary.of([usage.cpu for usage in used])
            large = [package for package in LARGE if package in modules]
            wall = Summary.of([usage.wall for usage in used])
            peak = max(usage.rss_nbytes for usage in used) / MIB
            rows.append(
                [name, str(cpu), str(wall), f"{peak:.0f}", str(len(modules)), ", ".join(large) or "none"]
            )
            raw[name] = {"runs": used, "modules": modules}
            if limit is not None:
                checks.append(Check(f"{name}: CPU time", cpu.median, limit, "s"))
            if command is not python:
                checks.append(
                    Check(
                        f"{name}: imports of torch or transformers",
                        len({"torch", "transformers"} & {*large}),
                        0,
                    )
                )
    return measure.publish(facts, HEAD, rows, checks, raw, options.json)


if __name__ == "__main__":
    sys.exit(main())
