"""Names of tensors as people's files have them, turned into those of a table where transformers does so.

A model saved by its base class lacks the prefix (or has one too many), the text part of a model of images may
keep the name of its place there, transformers 5 stacks a layer's experts (``save_original_format=False``),
a saver of shared tensors keeps one name of them, and old models hold buffers that follow from the config.
What is done is said in a note; what fits no table stays as it is, for the binder to refuse.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from ...errors import MappingError, some
from ...mappings.table import Part, Rule, Table, holes
from ...tensors.boxes import intersect, narrow
from ...tensors.stored import Extent, StoredTensor

#: what a name may begin with instead of the table's own first part
_ROOTS: Final = ("model", "transformer", "backbone", "gpt_neox", "bert")
#: places of a text part in a model of more than text, and what they stand for
_PLACES: Final = (
    ("model.language_model.model.", "model."),
    ("language_model.model.", "model."),
    ("model.language_model.", "model."),
    ("language_model.", ""),
    ("model.text_model.", "model."),
    ("text_model.", "model."),
)
#: a module that transformers 5 holds under another name, which it writes with save_original_format=False
_RENAMED: Final = (("lm_head.", "embed_out."), (".mlp.", ".block_sparse_moe."))
#: buffers that follow from the config, and that transformers makes anew whatever the file says
DERIVED: Final = re.compile(
    r"(\A|\.)(rotary_emb\.((original_)?inv_freq|cos_cached|sin_cached)|(attn|attention)\.masked_bias|"
    r"embeddings\.position_ids)\Z"
)
#: scales and the like of a quantized weight, which are called by its name
_BESIDE_WEIGHT: Final = re.compile(r"weight_[a-z_]+\Z")
_STACKED: Final = re.compile(r"(.+\.experts)\.(gate_up_proj|up_proj|down_proj)(\.weight)?")


@dataclass(slots=True)
class Named:
    """Tensors under the names of a table, and what was done to them."""

    tensors: dict[str, StoredTensor]
    renamed: dict[str, str] = field(default_factory=dict)  # new name -> stored name
    stacks: list[str] = field(default_factory=list)
    derived: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        found = []
        if self.renamed:
            pairs = [f"{old} for {new}" for new, old in sorted(self.renamed.items())]
            found.append(f"{len(self.renamed):,} tensors are named otherwise than usual: {some(pairs, 2)}")
        if self.stacks:
            found.append(f"{len(self.stacks):,} tensors hold the experts of a layer: {some(self.stacks, 2)}")
        if self.derived:
            names = some(self.derived, 2)
            found.append(f"{len(self.derived):,} buffers that follow from the config are left out: {names}")
        return found


def named(table: Table, tensors: Mapping[str, StoredTensor], where: str, *, tied: bool) -> Named:
    """``tensors`` under the table's names.

    Raises MappingError where two of them would have one name.
    """
    known = _Known.of(table)
    found = Named({})
    for name, tensor in tensors.items():
        if known.has(name) or known.has(_BESIDE_WEIGHT.sub("weight", name)):
            found.tensors[name] = tensor
            continue
        if DERIVED.search(name):
            found.derived.append(name)
            continue
        new = known.alias(name)
        stack = None if new else _stack(known, name, tensor)
        for one in [tensor] if stack is None else stack:
            spelled = (new or name) if stack is None else one.name
            if spelled in found.tensors or (spelled != name and spelled in tensors):
                raise MappingError(
                    f"{where}: {name} and {found.renamed.get(spelled, spelled)} are both {spelled}",
                    hint="two models seem to be mixed; remove the tensors that do not belong",
                )
            found.tensors[spelled] = one
        if stack is not None:
            found.stacks.append(name)
        elif new:
            found.renamed[new] = name
    if tied:
        _keep_original(table, found)
    return found


def _keep_original(table: Table, found: Named) -> None:
    """Of a shared tensor of which only the copy's name was kept, the original's."""
    for copy, original in table.tied:
        if copy in found.tensors and original not in found.tensors:
            found.tensors[original] = found.tensors.pop(copy)
            found.renamed[original] = found.renamed.pop(copy, copy)


@dataclass(frozen=True, slots=True)
class _Known:
    """What a table calls its tensors."""

    table: Table
    pattern: re.Pattern[str]
    root: str
    #: what experts' tensors end in: (gate, up, down), gate None where there is none
    leaves: tuple[tuple[str | None, str, str], ...]

    @staticmethod
    def of(table: Table) -> _Known:
        templates = dict.fromkeys(_templates(table))
        pattern = re.compile("|".join(_regex(each) for each in templates))
        first = [each.partition(".")[0] for each in templates if "{" in each]
        root = max(set(first), key=first.count) if first else ""
        return _Known(table, pattern, root, tuple(_leaves(table.rules)))

    def has(self, name: str) -> bool:
        return bool(self.pattern.fullmatch(name) or self.pattern.fullmatch(self.table.spelled(name)))

    def alias(self, name: str) -> str | None:
        """The table's name for a tensor that it does not know under ``name``."""
        return next((each for each in self._spellings(name) if self.has(each)), None)

    def _spellings(self, name: str) -> Iterator[str]:
        for each in _places(name):
            first, _, rest = each.partition(".")
            bases = (each, f"{self.root}.{each}", *((rest, f"{self.root}.{rest}") if first in _ROOTS else ()))
            for base in bases:
                yield base
                for old, new in _RENAMED:
                    if old in base:
                        yield base.replace(old, new, 1)


def _places(name: str) -> Iterator[str]:
    yield name
    for place, meant in _PLACES:
        if name.startswith(place):
            yield meant + name.removeprefix(place)


def _templates(table: Table) -> Iterator[str]:
    for rule in table.rules:
        for part in rule.parts:
            yield part.hf
    yield from table.ignored
    for copy, original in (*table.tied, *table.copies):
        yield from (copy, original)
    yield from table.normalized_head


def _regex(template: str) -> str:
    pattern = re.escape(template)
    for hole in holes(template):
        pattern = re.sub(rf"\\{{{hole}(:[a-z]+)?\\}}", r"\\d+", pattern)
    return pattern


# experts


def _leaves(rules: Iterable[Rule]) -> Iterator[tuple[str | None, str, str]]:
    """How the tensors of one expert end: of the first layer (gate and up, or up alone) and of the second."""
    first: list[tuple[str | None, str]] = []
    second: list[str] = []
    for rule in rules:
        ends = [part.hf.partition(".experts.{expert}.")[2] for part in rule.parts]
        if not all(ends) or any(part.window for part in rule.parts) or "expert" not in rule.holes:
            continue
        if len(ends) == 2:
            gate, up = (p.hf.partition(".experts.{expert}.")[2] for p in sorted(rule.parts, key=_half))
            first.append((gate, up))
        elif len(ends) == 1 and "fc2" in rule.nemo:
            second.append(ends[0])
        elif len(ends) == 1:
            first.append((None, ends[0]))
    if first and second:
        yield (*first[0], second[0])


def _half(part: Part) -> int:
    return next((first for factor, first, _ in part.at if factor == "half" and isinstance(first, int)), 0)


def _stack(known: _Known, name: str, tensor: StoredTensor) -> list[StoredTensor] | None:
    """The tensors of single experts of which ``tensor`` is the stack: [experts, rows, columns], gate over up.

    Source: transformers/conversion_mapping.py, MergeModulelist and Concatenate.
    """
    match = _STACKED.fullmatch(name)
    if match is None or len(tensor.shape) != 3 or not known.leaves:
        return None
    gate, up, down = known.leaves[0]
    count, rows, _ = tensor.shape
    halves = {"gate_up_proj": (gate, up), "up_proj": (up,), "down_proj": (down,)}[match[2]]
    if (match[2] == "up_proj") is (gate is not None) and match[2] != "down_proj":
        return None
    if rows % len(halves):
        return None
    step = rows // len(halves)
    found = []
    for expert in range(count):
        for number, leaf in enumerate(halves):
            plain = f"{match[1]}.{expert}.{leaf}"
            new = plain if known.has(plain) else known.alias(plain)
            if new is None:
                return None
            found.append(_slice(tensor, new, (expert, number * step), step))
    return found


def _slice(tensor: StoredTensor, name: str, at: tuple[int, int], rows: int) -> StoredTensor:
    """``rows`` rows of one matrix of a stack of them."""
    start, box = (*at, 0), (1, rows, tensor.shape[2])
    extents = []
    for extent in tensor.extents:
        common = intersect(extent.start, extent.shape, start, box)
        if common is not None:
            file, offset, low, shape, strides = narrow(extent, *common)
            inner = tuple(a - b for a, b in zip(low, start, strict=True))[1:]
            extents.append(Extent(file, offset, inner, shape[1:], strides[1:]))
    return StoredTensor(name, tensor.dtype, (rows, tensor.shape[2]), tuple(extents))
