"""What ``nemoconv supported`` and docs/supported.md say of an architecture is what tests of this folder prove."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nemoconv.entry_points import BUILT_IN, entries
from nemoconv.mappings import architectures, load_table

from .proofs import PROOFS, claims, problems

pytest.importorskip("transformers")
ROOT = Path(__file__).parents[2]
#: without other names of the same table
OURS = [
    name
    for name in architectures()
    if entries("mappings")[name].origin == BUILT_IN and load_table(name).architecture == name
]


@pytest.fixture(scope="module")
def collected() -> frozenset[str]:
    """The tests that pytest finds in the files that proofs are in."""
    named = (test for proofs in PROOFS.values() for tests in proofs.values() for test in tests)
    files = sorted({test.partition("::")[0] for test in named})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *files]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert found.returncode == 0, found.stdout[-2000:]
    return frozenset(line for line in found.stdout.splitlines() if "::" in line)


def test_all_tables_are_named() -> None:
    assert sorted(PROOFS) == OURS


@pytest.mark.parametrize("architecture", OURS)
def test_every_word_is_proved_by_a_test_that_is_there(architecture: str, collected: frozenset[str]) -> None:
    assert list(problems(load_table(architecture), PROOFS[architecture], collected)) == []


@pytest.mark.parametrize(
    ("verified", "says"),
    [
        (("bit-equal", "transformers logits"), "nothing is said of megatron-core"),
        (("bit-equal", "megatron-core logits", "real NeMo export"), "NeMo export has no test"),
        (("bit-equal, by hand", "transformers logits", "megatron-core logits"), "bits has a test"),
        (("bit-equal", "transformers logits", "megatron-core logits", "it works"), "claims nothing"),
    ],
)
def test_other_words_do_not_pass(collected: frozenset[str], verified: tuple[str, ...], says: str) -> None:
    table = replace(load_table("gemma3_text"), verified=verified)
    assert any(says in problem for problem in problems(table, PROOFS["gemma3_text"], collected))


def test_a_test_that_is_gone_is_missed(collected: frozenset[str]) -> None:
    gone = {"bits": ("tests/clients/test_megatron.py::test_that_was_deleted",)}
    table = replace(load_table("llama"), verified=("bit-equal",))
    assert list(problems(table, gone, collected)) == [f"there is no test {gone['bits'][0]}"]


def test_words_are_understood() -> None:
    assert claims("real NeMo import (with a stand-in for the released code)") == {"NeMo import"}
    assert claims("real NeMo import, export of float32") == {"NeMo import", "NeMo export"}
    assert claims("megatron-core logits, with multi-token prediction too") == {"megatron-core"}
