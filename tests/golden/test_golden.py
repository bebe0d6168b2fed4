"""The bytes that nemoconv writes are those it wrote before, for every format pair and architecture.

``golden.json`` holds their digests. A failure names the outputs, files and tensors that differ, and says whether
the logical tensors (name, type, shape, bytes) are still equal, so that a file in another order can be told from
another value. Where the change is meant, rewrite the digests and commit the diff with the reason:

    python -m tests.golden.rewrite                  # all
    python -m tests.golden.rewrite llama 'bert*'    # these cases only
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from nemoconv.mappings import architectures

from . import builder, cases, configs, digests

CASES = cases.cases()
GOLDEN = digests.load()
WITHOUT = () if find_spec("onnx") else ("onnx",)


def test_every_architecture_has_a_case() -> None:
    assert (
        configs.missing(architectures(), (name for case in CASES.values() for name in case.architectures))
        == []
    )


def test_every_case_has_digests_and_no_other() -> None:
    assert list(GOLDEN) == list(CASES)


@pytest.mark.parametrize("name", CASES)
def test_output_is_what_it_was(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    kept = builder.kept(case, GOLDEN.get(name, {}), WITHOUT)
    if WITHOUT and not kept:
        pytest.skip("needs the extra nemoconv[onnx]")
    found = digests.differences(kept, builder.make(case, tmp_path / "root", WITHOUT))
    if found:
        told = "\n  ".join(found)
        pytest.fail(
            f"{name}: {len(found)} of {len(kept)} outputs are not what they were\n  {told}", pytrace=False
        )
