"""Write golden.json anew, for all cases or for those that match the given patterns.

    python -m tests.golden.rewrite [PATTERN ...]

To be run from the root of the repository, with nemoconv importable and its extra ``onnx`` installed. It says
what changed, as the test would.
"""

from __future__ import annotations

import sys
import tempfile
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path

from . import builder, cases, digests

sys.path.insert(0, str(cases.FIXTURES))


def main(patterns: list[str]) -> None:
    """Make the cases and write their digests; others stay as they are."""
    if find_spec("onnx") is None:
        sys.exit("onnx is missing: install nemoconv[onnx], or its outputs would be lost")
    old = digests.load() if digests.FILE.exists() else {}
    new = {}
    for name, case in cases.cases().items():
        if patterns and not any(fnmatchcase(name, pattern) for pattern in patterns):
            if name in old:
                new[name] = old[name]
            continue
        with tempfile.TemporaryDirectory() as folder:
            new[name] = builder.make(case, Path(folder) / "root")
        for line in digests.differences(old.get(name, {}), new[name]):
            print(f"{name}: {line}")
    digests.dump(new)


if __name__ == "__main__":
    main(sys.argv[1:])
