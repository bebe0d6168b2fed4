"""Steps: what a table brings along besides rules, and that a table of somebody else can bring its own."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from nemoconv.converters.hf import checkpoint as hf
from nemoconv.converters.run.convert import convert
from nemoconv.converters.steps import steps_of
from nemoconv.errors import MappingError
from nemoconv.mappings import described, load_table
from nemoconv.plugin import Binding, Step

SHADOW, NORM = "model.shadow.weight", "model.norm.weight"


def read(tensor) -> bytes:
    (extent,) = tensor.extents
    return extent.file.pread(tensor.nbytes, extent.offset)


class Shadow(Step):
    """A norm that some files hold again."""

    compares = True

    def claim(self, bound: Binding, left: Collection[str]) -> Mapping[str, str | None]:
        return {SHADOW: bound.held_as(NORM)} if SHADOW in left else {}

    def explain(self, bound: Binding, left: Collection[str]) -> str:
        return "ask whoever made the shadow" if "model.shade.weight" in left else ""

    def notes(self, bound: Binding, target: str) -> Iterator[str]:
        yield f"{len(bound.claimed(self))} shadows"

    def compare(self, where: str, pairs) -> None:
        for copy, original in pairs:
            if read(copy) != read(original):
                raise MappingError(f"{where}: {copy.name} is another")


@pytest.fixture
def shadowed(monkeypatch: pytest.MonkeyPatch) -> None:
    llama = described("llama")
    assert llama is not None
    table = replace(llama, steps=(Shadow,)).table  # an architecture brings its steps along
    monkeypatch.setattr(hf, "table_for", lambda *_: table)


def names(table: str) -> list[str]:
    return [type(step).__name__ for step in steps_of(load_table(table))]


def test_tables_bring_what_they_need() -> None:
    assert names("llama") == ["Tied", "Zeros"]
    assert "MtpStep" in names("deepseek_v3")
    assert "NormalizedHeadStep" in names("baichuan")
    assert names("t5")[0] == "Tied"


def test_a_step_of_somebody_else(shadowed: None, tmp_path: Path) -> None:
    arrays = tiny.tensors(tiny.CONFIG)
    arrays[SHADOW] = arrays[NORM]
    tiny.write(tmp_path / "hf", arrays=arrays)
    report = convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2")
    assert "1 shadows" in report.notes
    arrays[SHADOW] = arrays[NORM][::-1].copy()
    tiny.write(tmp_path / "other", arrays=arrays)
    with pytest.raises(MappingError, match=r"model.shadow.weight is another"):
        convert(tmp_path / "other", tmp_path / "no", to="nemo2")
    assert not (tmp_path / "no").exists()
    arrays["model.shade.weight"] = arrays.pop(SHADOW)
    tiny.write(tmp_path / "shade", arrays=arrays)
    with pytest.raises(MappingError, match=r"model.shade.weight; ask whoever made the shadow"):
        convert(tmp_path / "shade", tmp_path / "no", to="nemo2")


def test_what_is_no_step() -> None:
    with pytest.raises(TypeError, match="llama: .* makes no Step"):
        steps_of(replace(load_table("llama"), steps=(lambda _: {},)))
