"""Compare two checkpoints bit for bit, across formats, names and layouts, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ...errors import CorruptCheckpoint, UnsupportedArchitecture
from ...mappings.hf.rope import meaning
from ...resharding.equal import first_difference
from ...tensors.stored import StoredTensor
from ..abilities import Repeating, plain_tensors, seen_beside
from ..base import Checkpoint, Model, holdings
from ..bind import Bound, members
from ..mtp_layers import COPIED
from . import reading


@dataclass(slots=True)
class Comparison:
    """The outcome: equal, or where the two first differ and how much in all."""

    tensors: int = 0
    nbytes: int = 0
    config_differences: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    first: str = ""
    #: how the two were read
    notes: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        return not self.different and not self.config_differences

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def describe(self) -> str:
        """One line."""
        if self.equal:
            said = f" ({'; '.join(self.notes)})" if self.notes else ""
            return f"{self.tensors:,} tensors, {self.nbytes:,} bytes: equal bit for bit{said}"
        parts = []
        if self.config_differences:
            parts.append(f"configs differ: {'; '.join(self.config_differences[:10])}")
        if self.different:
            parts.append(f"{len(self.different)} of {self.tensors} tensors differ, first {self.first}")
        return "; ".join(parts)


def compare(
    a: Checkpoint,
    b: Checkpoint,
    progress: Callable[[str, int, int], None] | None = None,
    allow_ignored: Sequence[str] = (),
) -> Comparison:
    """Compare configs and tensors of two checkpoints of the same architecture.

    Rows that only pad a vocabulary are left out, and what ``allow_ignored`` lets be left out. Quantised
    tensors are compared as what they are decoded to. Raises what opening and binding them raises.
    """
    a, b = seen_beside(a, b), seen_beside(b, a)
    if not (a.has_model and b.has_model):
        return _compare_plain(a, b, progress)
    model_a, model_b = a.model(allow_ignored), b.model(allow_ignored)
    if model_a.table.architecture != model_b.table.architecture:
        raise UnsupportedArchitecture(
            f"{a.path} is a {model_a.table.architecture!r}, {b.path} a {model_b.table.architecture!r}"
        )
    manifest_fields = {key for key, _ in model_a.table.manifest_fields}
    result = Comparison(
        config_differences=_config_differences(model_a.config, model_b.config, manifest_fields)
    )
    result.notes = [*a.notes(), *b.notes()]
    if result.config_differences:
        return result
    total = sum(spec.nbytes for _, spec in holdings(a))
    bounds = Bound(a, model_a), Bound(b, model_b)
    result.notes = [note for b in bounds for note in (*b.checkpoint.notes(), *reading.notes(b))]
    # tables of adapters are made of what a checkpoint holds, and only Megatron fuses: its rules tell both
    fused = model_a.table is not model_b.table and b.side == "nemo"
    _compare_bound(*(bounds[::-1] if fused else bounds), result, progress, total)
    for bound in bounds:
        _compare_copies(bound, result)
    return result


def _compare_copies(bound: Bound, result: Comparison) -> None:
    """Compare what a checkpoint holds again with the tensors that it shares."""
    for one, other in (pair for step in bound.steps if step.compares for pair in bound.repeated(step)):
        result.tensors += 1
        result.nbytes += one.nbytes
        difference = first_difference(one, other) if one.shape == other.shape else "its shape is another"
        if difference:
            result.different.append(one.name)
            result.first = result.first or f"{one.name} is not {other.name}: {difference}"


def compare_companions(
    model: Model, ours: Mapping[str, Checkpoint], others: Mapping[str, Checkpoint], result: Comparison
) -> None:
    """Compare sets of tensors that go along with a model's, such as optimizer state, into ``result``."""
    for kind, one in ours.items():
        other = others.get(kind)
        if other is None or set(one.keys()) != set(other.keys()):
            result.different.append(kind)
            result.first = result.first or f"{kind}: not of the same parameters"
            continue
        bounds = [Bound(side, model, partial=True) for side in (one, other)]
        _compare_bound(bounds[0], bounds[1], result, None, 0, f" of {kind}")


def _compare_bound(
    bound_a: Bound,
    bound_b: Bound,
    result: Comparison,
    progress: Callable[[str, int, int], None] | None,
    total: int,
    what: str = "",
) -> None:
    """Compare every tensor of two checkpoints of one model."""
    wide = {**bound_a.sizes, "vocab": max(bound_a.sizes["vocab"], bound_b.sizes["vocab"])}
    for instance in bound_a.instances:
        if not instance.in_hf:
            continue
        shape = tuple(
            bound_a.sizes["true_vocab"] if factor == "vocab" else wide[factor]
            for factor in instance.rule.view.factors
        )
        dtypes = bound_a.dtype(instance), bound_b.dtype(instance)
        name = _both_names(instance, bound_a, bound_b) + what
        result.tensors += 1
        if dtypes[0] != dtypes[1]:
            result.different.append(name)
            result.first = result.first or f"{name}: {dtypes[0]} and {dtypes[1]}"
            continue
        one, other = (
            StoredTensor(name, dtypes[0], shape, bound.extents(instance, bound.space(instance.rule, wide)))
            for bound in (bound_a, bound_b)
        )
        difference = first_difference(one, other, instance.rule.axes)
        result.nbytes += one.nbytes
        if progress:
            progress("verify", min(result.nbytes, total), total)
        if difference:
            result.different.append(name)
            result.first = result.first or f"{name}: {difference}"


def _compare_plain(
    a: Checkpoint, b: Checkpoint, progress: Callable[[str, int, int], None] | None
) -> Comparison:
    """Compare tensors by the names that the sources give them, whatever model they are."""
    ours, others = plain_tensors(a), plain_tensors(b)
    result = Comparison()
    total = sum(tensor.nbytes for tensor in ours.values())
    for name in sorted(ours.keys() | others.keys()):
        result.tensors += 1
        one, other = ours.get(name), others.get(name)
        if one is None or other is None:
            difference: str | None = f"only in {b.path if one is None else a.path}"
        elif (one.dtype, one.shape) != (other.dtype, other.shape):
            difference = f"{one.dtype} {list(one.shape)} and {other.dtype} {list(other.shape)}"
        else:
            difference = first_difference(one, other)
            result.nbytes += one.nbytes
        if progress:
            progress("verify", min(result.nbytes, total), total)
        if difference:
            result.different.append(name)
            result.first = result.first or f"{name}: {difference}"
    return result


def check_repeated(source: Checkpoint) -> None:
    """Raise CorruptCheckpoint where what a checkpoint holds twice is not the same."""
    for copy, held in source.copies() if isinstance(source, Repeating) else ():
        if difference := first_difference(copy, held):
            raise CorruptCheckpoint(f"{source.path}: holds {copy.name} twice, but {difference}")


def _both_names(instance: Any, a: Bound, b: Bound) -> str:
    """The tensor's Megatron name and, where a side is Hugging Face, its names there."""
    names = [member.name for member in members(instance, "nemo", a.sizes)]
    if "hf" in (a.checkpoint.side, b.checkpoint.side):
        names.append("(" + ", ".join(member.name for member in members(instance, "hf", a.sizes)) + ")")
    return " ".join(names)


def _config_differences(a: Mapping[str, Any], b: Mapping[str, Any], manifest_fields: set[str]) -> list[str]:
    """What two model configs say otherwise, of what both formats can say."""
    skipped = {"params_dtype", "init_method_std", "attention_dropout", COPIED, *manifest_fields}
    return [
        f"{key}: {a.get(key)!r} and {b.get(key)!r}"
        for key in sorted(a.keys() | b.keys())
        if key not in skipped and _meant(key, a.get(key)) != _meant(key, b.get(key))
    ]


def _meant(key: str, value: Any) -> Any:
    """A value of a config as what it means, where one thing can be said in several ways."""
    return meaning(value) if key == "rope_scaling" and (value is None or isinstance(value, dict)) else value
