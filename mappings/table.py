"""Mapping tables: how the tensors of one architecture correspond in Hugging Face and in Megatron.

A :class:`Rule` describes one Megatron tensor as a space of named factors and says which box of that
space each Hugging Face tensor is. The description has no direction: reading either side and writing
either side use the same boxes, so there is no second table and no inverse to keep in step.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from math import prod

from ..tensors.boxes import Shape, View, view
from ..tensors.layout import Layout, divisors
from .hf.fields import ConfigRule, Value
from .nemo2.fields import NemoClasses
from .sizes import attention_sizes

Sizes = Mapping[str, int]


@cache
def holes(template: str) -> tuple[str, ...]:
    """Names of the holes of a template such as ``model.layers.{layer}.mlp``."""
    return tuple(name for _, name, _, _ in string.Formatter().parse(template) if name is not None)


def _number(value: int | str, sizes: Sizes) -> int:
    return sizes[value] if isinstance(value, str) else value


@dataclass(frozen=True, slots=True)
class Part:
    """One Hugging Face tensor and the box of the rule's space that it holds.

    ``axes`` names the factors of its stored axes. ``at`` gives, for factors that it holds only a part
    of, (factor, first, length); a factor that ``axes`` leaves out is held at one index. ``window``
    says that the part is only a slice of the stored tensor: for a stored axis, (axis, first, length,
    whole length). ``axes`` and ``at`` then describe the slice. Numbers may be names of sizes, and
    ``first`` the name of a hole: ``(0, "expert", 1, "experts")`` picks one of stacked experts.
    """

    hf: str
    axes: str
    at: tuple[tuple[str, int | str, int | str], ...] = ()
    window: tuple[tuple[int, int | str, int | str, int | str], ...] = ()

    @property
    def view(self) -> View:
        return view(self.axes)

    def bounds(self, sizes: Sizes) -> dict[str, tuple[int, int]]:
        """(first, length) of each factor in ``at``, as numbers."""
        return {factor: (_number(first, sizes), _number(length, sizes)) for factor, first, length in self.at}

    def sizes(self, sizes: Sizes) -> Sizes:
        """The sizes that factors have in this part."""
        if not self.at:
            return sizes
        return {**sizes, **{factor: length for factor, (_, length) in self.bounds(sizes).items()}}

    def shape(self, sizes: Sizes) -> Shape:
        """The stored shape of the whole Hugging Face tensor."""
        shape = list(self.view.shape(self.sizes(sizes)))
        for axis, _, _, whole in self.window:
            shape[axis] = _number(whole, sizes)
        return tuple(shape)

    def slice(self, sizes: Sizes, index: Mapping[str, int]) -> tuple[Shape, Shape]:
        """(start, shape) of the part in the stored tensor."""
        shape = list(self.view.shape(self.sizes(sizes)))
        start = [0] * len(shape)
        for axis, first, length, _ in self.window:
            start[axis] = _number(first, {**sizes, **index})
            shape[axis] = _number(length, sizes)
        return tuple(start), tuple(shape)


@dataclass(frozen=True, slots=True)
class Rule:
    """One Megatron tensor and the Hugging Face tensors it is made of.

    ``axes``: the factors of its stored axes. ``cut``: the factor that tensor parallelism divides, None
    when every rank holds the whole. ``other_names``: other names of the same tensor (a dialect). ``when``:
    config values under which the rule applies. ``pad``: a factor that the Megatron side may extend
    with rows that mean nothing (the vocabulary). ``hf_when``: config values under which Hugging Face
    has the tensor; under others it is all zeros on the Megatron side and absent on the other.
    ``layers``: the layer set of the table that the rule is for, all layers by default.
    ``keeps_dtype``: a cast of the model leaves it alone.
    ``never_read``: where Hugging Face lacks it, Megatron never reads it, and it may hold anything.
    """

    nemo: str
    axes: str
    parts: tuple[Part, ...]
    cut: str | None = None
    other_names: tuple[str, ...] = ()
    when: tuple[tuple[str, Value], ...] = ()
    pad: str | None = None
    hf_when: tuple[tuple[str, Value], ...] = ()
    layers: str = ""
    keeps_dtype: bool = False
    never_read: bool = False

    @property
    def view(self) -> View:
        return view(self.axes)

    @property
    def holes(self) -> tuple[str, ...]:
        return holes(self.nemo)

    def of_kind(self, kind: str, varying_factors: frozenset[str]) -> Rule:
        """The rule of a layer with sizes of its own for ``varying_factors``: ``ffn`` is ``ffn.kind``."""
        return _of_kind(self, kind, varying_factors) if kind else self

    def applies(self, config: Mapping[str, Value]) -> bool:
        return all(config.get(key) == value for key, value in self.when)

    def in_hf(self, config: Mapping[str, Value]) -> bool:
        """Whether the Hugging Face side has these tensors."""
        return all(config.get(key) == value for key, value in self.hf_when)

    def fragments(self, sizes: Sizes, layout: Layout) -> Iterator[tuple[int, Shape, Shape]]:
        """(tensor-parallel rank, start, shape) of the stored boxes that the ranks hold.

        Along the axis of ``cut``, each position of the factors outside it gives a box of its own:
        rank r of a gated ``linear_fc1`` holds a slice of gate and a slice of up, never a run of rows.
        Megatron stores those as separate chunks even when there is one rank, and so does this.

        Raises LayoutError when the tensor-parallel size does not divide ``cut``.
        """
        shape = self.view.shape(sizes)
        if self.cut is None:
            yield 0, (0,) * len(shape), shape
            return
        axis = next(i for i, names in enumerate(self.view.axes) if self.cut in names)
        names = self.view.axes[axis]
        inner = prod(sizes[name] for name in names[names.index(self.cut) + 1 :])
        outer = prod(sizes[name] for name in names[: names.index(self.cut)])
        size = sizes[self.cut]
        plain, dot, kind = self.cut.partition(".")
        heads = {name: sizes.get(name + dot + kind, 1) for name in (GROUP, "heads_per_group")}
        if plain == GROUP and splits_groups(heads, layout, shape[axis]):
            length = shape[axis] // layout.tensor_parallel_size
            for rank in range(layout.tensor_parallel_size):
                start, box = [0] * len(shape), list(shape)
                start[axis], box[axis] = rank * length, length
                yield rank, tuple(start), tuple(box)
            return
        anywhere = self.nemo.format(**dict.fromkeys(self.holes, "*"))
        shared = divisors(heads["heads_per_group"])[1:] if plain == GROUP else ()
        pieces = layout.pieces(
            size,
            FIELD_NAMES.get(plain, plain),
            anywhere,
            of_experts="expert" in self.holes,
            tied_sizes=[size * count for count in shared if shape[axis] % (size * count) == 0],
        )
        for rank, (first, length) in enumerate(pieces):
            for position in range(outer):
                start, box = [0] * len(shape), list(shape)
                start[axis] = (position * size + first) * inner
                box[axis] = length * inner
                yield rank, tuple(start), tuple(box)


@cache
def _of_kind(rule: Rule, kind: str, varying_factors: frozenset[str]) -> Rule:
    """One object for all layers of a kind, since geometry is kept by rule."""

    def own(name: int | str) -> int | str:
        return f"{name}.{kind}" if name in varying_factors else name

    def axes(text: str) -> str:
        return " ".join(f"({' '.join(map(str, map(own, axis)))})" for axis in view(text).axes)

    parts = tuple(
        replace(
            part,
            axes=axes(part.axes),
            at=tuple((str(own(factor)), own(first), own(length)) for factor, first, length in part.at),
            window=tuple((axis, own(a), own(b), own(c)) for axis, a, b, c in part.window),
        )
        for part in rule.parts
    )
    return replace(rule, axes=axes(rule.axes), parts=parts, cut=rule.cut and str(own(rule.cut)))


#: the factor of query groups: a query head's group has one key and one value head
GROUP = "group"
#: the hole of layers beyond the last, which predict further tokens
DEPTH = "depth"
#: the hole of layers of an encoder beside the decoder, which come before it and are counted on their own
BLOCK = "block"


class Depth(int):
    """The number of a layer that predicts further tokens. Megatron counts these from 0, Hugging Face goes on
    counting where the decoder's layers end: ``{depth:beyond}``."""

    layers: int

    def __new__(cls, depth: int, layers: int) -> Depth:
        made = super().__new__(cls, depth)
        made.layers = layers
        return made

    def __format__(self, spec: str) -> str:
        return str(self.layers + self) if spec == "beyond" else super().__format__(spec)


def splits_groups(sizes: Sizes, layout: Layout, rows: int | None = None) -> bool:
    """Whether tensor parallelism goes on inside query groups, whose ``rows`` are then cut evenly.

    megatron-core keeps no copies of key and value heads for that: where there are more ranks than groups
    it cuts the rows of ``linear_qkv`` evenly, and ranks gather what they need
    (``get_query_key_value_tensors`` in megatron/core/transformer/attention.py, 0.16). So the ranks have
    to share whole query heads, too.
    """
    count, groups = layout.tensor_parallel_size, sizes.get(GROUP, 1)
    if count <= groups or count % groups or sizes.get("heads_per_group", 1) % (count // groups):
        return False
    return rows is None or rows % count == 0


#: what the config calls the sizes that a layout divides, for messages
FIELD_NAMES = {
    "group": "num_query_groups",
    "hidden": "hidden_size",
    "ffn": "ffn_hidden_size",
    "moe_ffn": "moe_ffn_hidden_size",
    "shared_ffn": "moe_shared_expert_intermediate_size",
    "heads": "num_attention_heads",
    "mamba_heads": "mamba_num_heads",
    "mamba_groups": "mamba_num_groups",
    "vocab": "vocab_size",
}


@dataclass(frozen=True, slots=True)
class Module:
    """A Megatron module that keeps an ``_extra_state`` object, for the layers of ``layers``, in models
    whose config has the values of ``when``."""

    name: str
    layers: str = ""
    when: tuple[tuple[str, Value], ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """All that is known of one architecture. Frozen: converting one model never alters the next.

    ``architecture`` is the Hugging Face ``model_type``, with ``:class`` where one of its classes has a table
    of its own; ``hf_class`` the class that is written;
    ``other_classes`` are read as well. ``ignored`` lists tensors that are derived at
    load time and carry nothing; ``tied`` pairs of (copy, original) that a tied model may hold twice.
    ``modules`` are the Megatron modules that keep an ``_extra_state`` object. ``sizes`` gives the sizes
    of factors and holes; ``layer_sets`` the layers of each kind where layers differ, which Megatron then
    stores one by one instead of stacked, unless ``uniform_layers`` says that this model has only one kind.
    ``kinds`` names for each layer the kind whose sizes it has, where layers differ in those: ``sizes`` then
    gives ``ffn.kind`` for each factor in ``varying_factors``. ``spellings`` are (pattern, replacement) pairs
    that turn other names found in Hugging Face files into those of ``rules``. ``files`` are files of a
    Hugging Face directory that go along beside the tokenizer's. ``nemo`` names the NeMo 2 classes written
    into ``context/``. ``verified`` says against whom the table was proved.
    """

    architecture: str
    hf_class: str
    fields: tuple[ConfigRule, ...]
    rules: tuple[Rule, ...]
    nemo: NemoClasses
    modules: tuple[Module, ...] = ()
    other_classes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    tied: tuple[tuple[str, str], ...] = ()
    sizes: Callable[[Mapping[str, Value]], dict[str, int]] = attention_sizes
    layer_sets: Callable[[Mapping[str, Value]], Mapping[str, frozenset[int]]] | None = None
    uniform_layers: Callable[[Mapping[str, Value]], bool] | None = None
    #: experts that tensor parallelism does not cut
    whole_experts: bool = False
    #: what names of tensors of a Hugging Face layer begin with, where there may be layers beyond the last
    mtp_layer: str = ""
    #: (copy, original) of Hugging Face tensors that each layer beyond the last may hold again
    copies: tuple[tuple[str, str], ...] = ()
    #: Hugging Face tensors of which the model divides each row by its length when it runs
    normalized_head: tuple[str, ...] = ()
    #: (copy, original) of Megatron's tensors that it stores under two names
    stored_twice: tuple[tuple[str, str], ...] = ()
    kinds: Callable[[Mapping[str, Value]], Sequence[str]] | None = None
    varying_factors: frozenset[str] = frozenset()
    spellings: tuple[tuple[str, str], ...] = ()
    files: tuple[str, ...] = ()
    #: (field of the model config, what to take where nothing tells): what NeMo 2 has no words for, so that it
    #: travels in the manifest
    manifest_fields: tuple[tuple[str, Value], ...] = ()
    #: what else this model needs: each makes a step (converters/step.py) of the table
    steps: tuple[Callable[[Table], object], ...] = ()
    verified: tuple[str, ...] = ()
    origin: str = field(default="nemoconv", compare=False)

    def __post_init__(self) -> None:
        """Refuse a table that could not work in both directions. Raises ValueError."""
        seen: set[tuple[bool, str, tuple[tuple[str, Value], ...], str]] = set()
        for rule in self.rules:
            factors = set(rule.view.factors)
            named_nemo = [(True, name) for name in (rule.nemo, *rule.other_names)]
            for is_nemo, name in (*named_nemo, *((False, part.hf) for part in rule.parts)):
                picked = {first for part in rule.parts if part.hf == name for _, first, _, _ in part.window}
                if set(holes(name)) | (picked & set(rule.holes)) != set(rule.holes):
                    raise ValueError(f"{self.architecture}: {name} and {rule.nemo} have other holes")
                key = (is_nemo, name, rule.when, rule.layers)
                if key in seen and not any(part.hf == name and part.window for part in rule.parts):
                    raise ValueError(f"{self.architecture}: {name} is named by two rules")
                seen.add(key)
            for part in rule.parts:
                named = set(part.view.factors) | {factor for factor, _, _ in part.at}
                if named != factors:
                    raise ValueError(f"{self.architecture}: {part.hf} does not place {factors ^ named}")
            if not {rule.cut, rule.pad} - {None} <= factors:
                raise ValueError(f"{self.architecture}: {rule.nemo} cuts or pads an axis it lacks")

    @property
    def model_type(self) -> str:
        return self.architecture.partition(":")[0]

    def spelled(self, name: str) -> str:
        """The name that ``rules`` have for a tensor of a Hugging Face file."""
        for pattern, replacement in self.spellings:
            name = re.sub(pattern, replacement, name)
        return name

    def stacked(self, config: Mapping[str, Value]) -> bool:
        """Whether Megatron stores the layers of this model stacked, since all have the same tensors."""
        if self.layer_sets is None:
            return True
        return self.uniform_layers is not None and self.uniform_layers(config)

    def instances(self, config: Mapping[str, Value], sizes: Sizes) -> Iterator[Instance]:
        """Every rule that applies, once for each layer (and expert) it names, in model order."""
        rules = [rule for rule in self.rules if rule.applies(config)]
        first = next((i for i, rule in enumerate(rules) if "layer" in rule.holes), len(rules))
        layered = [rule for rule in rules if "layer" in rule.holes]
        blocks = [rule for rule in rules if BLOCK in rule.holes]
        for number in range(sizes[HOLE_SIZES[BLOCK]] if blocks else 0):
            for rule in blocks:
                yield Instance(rule, {BLOCK: number}, -1, rule.in_hf(config))
        for rule in rules[:first]:
            if BLOCK not in rule.holes:
                yield Instance(rule, {}, -1, rule.in_hf(config))
        sets = self.layer_sets(config) if self.layer_sets else {}
        kinds = self.kinds(config) if self.kinds else [""] * sizes["layers"]
        for layer in range(sizes["layers"]):
            for rule in layered:
                if rule.layers and layer not in sets[rule.layers]:
                    continue
                others = [hole for hole in rule.holes if hole != "layer"]
                for index in product(*(range(sizes[HOLE_SIZES[hole]]) for hole in others)):
                    named = {"layer": layer, **dict(zip(others, index, strict=True))}
                    own = rule.of_kind(kinds[layer], self.varying_factors)
                    yield Instance(own, named, layer, rule.in_hf(config))
        yield from self._mtp_instances(rules, config, sizes)
        for rule in rules[first:]:
            if not {"layer", DEPTH, BLOCK} & set(rule.holes):
                yield Instance(rule, {}, sizes["layers"], rule.in_hf(config))

    def _mtp_instances(
        self, rules: Sequence[Rule], config: Mapping[str, Value], sizes: Sizes
    ) -> Iterator[Instance]:
        """Those of layers that predict further tokens, which stand behind all others."""
        deep = [rule for rule in rules if DEPTH in rule.holes]
        for number in range(sizes.get(HOLE_SIZES[DEPTH], 0) if deep else 0):
            for rule in deep:
                others = [hole for hole in rule.holes if hole != DEPTH]
                for index in product(*(range(sizes[HOLE_SIZES[hole]]) for hole in others)):
                    named = {DEPTH: Depth(number, sizes["layers"]), **dict(zip(others, index, strict=True))}
                    yield Instance(rule, named, sizes["layers"], rule.in_hf(config))


@dataclass(frozen=True, slots=True)
class Instance:
    """A rule for one layer. ``layer`` says where in the model it stands: -1 for what comes before the
    first layer (embeddings), the number of layers for what comes after the last (final norm, output)."""

    rule: Rule
    index: dict[str, int]
    layer: int
    in_hf: bool

    @property
    def nemo(self) -> str:
        return self.rule.nemo.format(**self.index)


#: which size bounds a hole
HOLE_SIZES = {"expert": "experts", DEPTH: "depths", BLOCK: "blocks"}


def check_layout(table: Table, config: Mapping[str, Value], sizes: Sizes, layout: Layout) -> None:
    """Raise LayoutError, naming the sizes that would do, unless the layout divides the model."""
    layout.check(sizes["layers"])
    layout.check_experts(sizes.get("experts", 1))
    rules: Iterable[Rule] = table.rules
    if table.kinds:
        rules = {id(each.rule): each.rule for each in table.instances(config, sizes)}.values()
    for rule in rules:
        absent = DEPTH in rule.holes and not sizes.get(HOLE_SIZES[DEPTH])
        if rule.applies(config) and rule.cut != rule.pad and not absent:
            next(rule.fragments(sizes, layout))
