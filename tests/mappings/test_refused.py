"""Well-known architectures without a table are refused by name, with the reason."""

from __future__ import annotations

import pytest

from nemoconv.errors import UnsupportedArchitecture
from nemoconv.mappings import architectures, load_table
from nemoconv.mappings.refused import NO_COUNTERPART


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("RefinedWeb", "first Falcons"),
        ("bloom", "ALiBi"),
        ("olmo2", "normalise only what attention"),
        ("exaone4", "norms of q and k"),
        ("qwen3_next", "gated delta nets"),
        ("olmoe", "span all heads"),
        ("minimax_m2", "span all heads"),
        ("ernie4_5_moe", "with sigmoid only"),
        ("umt5", "relative positions of its own"),
        ("granite", "residual_multiplier"),
        ("phi", "side by"),
    ],
)
def test_the_reason_is_told(architecture: str, reason: str) -> None:
    with pytest.raises(UnsupportedArchitecture, match=f"{architecture}.*{reason}"):
        load_table(architecture)


def test_none_of_them_has_a_table() -> None:
    assert not NO_COUNTERPART.keys() & set(architectures())
