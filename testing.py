"""Tests that a plug-in inherits: what every converter and every mapping table must hold to.

    from nemoconv.testing import ConverterTests, MappingTests

    class TestMyFormat(ConverterTests):
        format = "my-format"

    class TestMyArchitecture(MappingTests):
        config = {"model_type": "my-arch", ...}   # a tiny config.json

They run under pytest (which gives ``tmp_path``) and are the same tests that nemoconv's own formats and
architectures pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from .converters.look.inspect import inspect
from .converters.look.verify import verify
from .converters.registry import find_format, open_checkpoint, recognize
from .converters.run.compare import compare
from .converters.run.convert import convert
from .errors import LayoutError, MappingError, NemoconvError, OutputError
from .formats.text.fiddle import Symbol
from .mappings import load_table, samples, table_for, table_for_nemo
from .mappings.hf.fields import read_config, write_config
from .mappings.table import holes


def data_of(folder: Path) -> dict[str, bytes]:
    """Every tensor of a checkpoint as its logical bytes."""
    with open_checkpoint(folder) as checkpoint:
        return {name: checkpoint.read(name).tobytes() for name in checkpoint.keys()}  # noqa: SIM118


def _raises(kind: type[NemoconvError], call: Any) -> NemoconvError:
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


class ConverterTests:
    """What a format must do. Set ``format``; ``config`` is the sample model to try it with."""

    format: ClassVar[str]
    config: ClassVar[Mapping[str, Any]] = samples.LLAMA

    def _both(self, tmp_path: Path) -> tuple[Path, Path]:
        source, target = tmp_path / "source", tmp_path / "target"
        samples.build(source, self.config)
        convert(source, target, to=self.format)
        return source, target

    def test_recognizes_what_it_wrote(self, tmp_path: Path) -> None:
        _, target = self._both(tmp_path)
        assert recognize(target).name == self.format

    def test_does_not_recognize_other_things(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("nothing")
        assert not find_format(self.format).recognizes(tmp_path)
        assert not find_format(self.format).recognizes(tmp_path / "notes.txt")

    def test_there_and_back_is_equal_bit_for_bit(self, tmp_path: Path) -> None:
        source, target = self._both(tmp_path)
        back = tmp_path / "back"
        convert(target, back, to="hf", verify=True)
        assert data_of(source) == data_of(back)

    def test_output_is_reproducible(self, tmp_path: Path) -> None:
        source, target = self._both(tmp_path)
        again = tmp_path / "again"
        convert(source, again, to=self.format)
        files = sorted(path.relative_to(target) for path in target.rglob("*") if path.is_file())
        assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
        for name in files:
            assert (target / name).read_bytes() == (again / name).read_bytes(), name

    def test_compares_equal_to_its_source(self, tmp_path: Path) -> None:
        source, target = self._both(tmp_path)
        with open_checkpoint(source) as a, open_checkpoint(target) as b:
            assert compare(a, b).equal

    def test_verifies_and_finds_any_flipped_byte(self, tmp_path: Path) -> None:
        _, target = self._both(tmp_path)
        assert verify(target).equal
        largest = max((path for path in target.rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
        data = bytearray(largest.read_bytes())
        for place in (len(data) // 3, len(data) // 2, len(data) - len(data) // 5):
            data[place] ^= 1
            largest.write_bytes(data)
            _raises(NemoconvError, lambda: verify(target))
            data[place] ^= 1

    def test_truncation_is_an_error(self, tmp_path: Path) -> None:
        _, target = self._both(tmp_path)
        largest = max((path for path in target.rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
        data = largest.read_bytes()
        for length in (0, len(data) // 2, len(data) - 1):
            largest.write_bytes(data[:length])
            _raises(NemoconvError, lambda: convert(target, tmp_path / "no", to="hf"))
            assert not (tmp_path / "no").exists()

    def test_reads_slices(self, tmp_path: Path) -> None:
        _, target = self._both(tmp_path)
        with open_checkpoint(target) as checkpoint:
            for name in checkpoint.keys():  # noqa: SIM118
                whole = checkpoint.read(name)
                assert whole.shape == checkpoint.spec(name).shape
                if whole.ndim == 2:
                    part = checkpoint.read(name, (slice(1, 5), slice(2, 7)))
                    assert part.tobytes() == whole[1:5, 2:7].tobytes()
                    assert checkpoint.read(name, (3,)).tobytes() == whole[3].tobytes()

    def test_hands_out_pieces(self, tmp_path: Path) -> None:
        """Of each tensor the whole, or what every rank holds in the order of ranks."""
        _, target = self._both(tmp_path)
        with open_checkpoint(target) as checkpoint:
            for name in checkpoint.keys():  # noqa: SIM118
                pieces, spec = checkpoint.pieces(name), checkpoint.spec(name)
                assert {piece.stored.dtype for piece in pieces} == {spec.dtype}
                ranks = [piece.rank for piece in pieces if piece.rank is not None]
                assert ranks == sorted(set(ranks))
                if not ranks:
                    assert [piece.stored.shape for piece in pieces] == [spec.shape]

    def test_inspects(self, tmp_path: Path) -> None:
        _, target = self._both(tmp_path)
        facts = inspect(target)
        assert facts["format"] == self.format
        assert facts["architecture"] == self.config["model_type"]
        assert facts["files"]

    def test_refuses_to_overwrite(self, tmp_path: Path) -> None:
        source, target = self._both(tmp_path)
        _raises(OutputError, lambda: convert(source, target, to=self.format))
        assert verify(target).equal


class MappingTests:
    """What an architecture must do. Set ``config``: a tiny config.json of it."""

    config: ClassVar[Mapping[str, Any]]
    #: a tensor-parallel size that divides the tiny model
    tensor_parallel_size: ClassVar[int] = 2

    def test_table_is_found_and_frozen(self) -> None:
        table = table_for(self.config, "test")
        assert load_table(table.architecture) is table
        hash(table.rules)

    def test_names_have_the_same_holes_on_both_sides(self) -> None:
        for rule in table_for(self.config, "test").rules:
            for part in rule.parts:
                picked = {first for _, first, _, _ in part.window}  # one of what is stacked there
                assert set(holes(part.hf)) | (picked & set(holes(rule.nemo))) == set(holes(rule.nemo))

    def test_config_survives_both_ways(self) -> None:
        table = table_for(self.config, "test")
        config, _ = read_config(table.fields, self.config)
        again, _ = read_config(table.fields, write_config(table.fields, config))
        assert config == again

    def test_its_nemo_2_config_is_told_from_those_of_others(self) -> None:
        table = table_for(self.config, "test")
        config, _ = read_config(table.fields, self.config)
        name, fields = table.nemo.write({"tensor_parallel_size": 1, **config})
        found = table_for_nemo(Symbol(table.nemo.module, name), fields, "test")
        assert found.architecture in (table.architecture, table.nemo.read_as)

    def test_round_trip_through_nemo_2(self, tmp_path: Path) -> None:
        source = tmp_path / "source"
        samples.build(source, self.config)
        for size in {1, self.tensor_parallel_size}:
            nemo, back = tmp_path / f"nemo{size}", tmp_path / f"back{size}"
            convert(source, nemo, to="nemo2", tensor_parallel_size=size, verify=True)
            convert(nemo, back, to="hf", verify=True)
            assert data_of(source) == data_of(back)

    def test_impossible_layouts_are_refused(self, tmp_path: Path) -> None:
        source = tmp_path / "source"
        samples.build(source, self.config)
        call = partial(convert, source, tmp_path / "n", to="nemo2", tensor_parallel_size=1009)
        assert "tensor_parallel_size=1009" in str(_raises(LayoutError, call))

    def test_a_missing_or_foreign_tensor_is_named(self, tmp_path: Path) -> None:
        table = table_for(self.config, "test")
        names = [name for name, _ in samples.tensors(self.config)]
        for rename in (names[0], names[-1]):
            source = tmp_path / rename
            samples.build(source, self.config)
            data = (source / "model.safetensors").read_bytes()
            swapped = rename[:-1] + "~"
            (source / "model.safetensors").write_bytes(data.replace(rename.encode(), swapped.encode(), 1))
            error = _raises(MappingError, partial(convert, source, tmp_path / "n", to="nemo2"))
            assert swapped in str(error)
            assert table.architecture in str(error)
