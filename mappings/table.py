"""Mapping tables: how the tensors of one architecture correspond in Hugging Face and in Megatron.

A :class:`Rule` describes one Megatron tensor as a space of named factors and says which box of that
space each Hugging Face tensor is. The description has no direction: reading either side and writing
either side use the same boxes, so there is no second table and no inverse to keep in step.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from math import prod

from nemoconv.mappings.config_fields import ConfigRule, Value
from nemoconv.mappings.nemo_fields import NemoClasses
from nemoconv.mappings.sizes import attention_sizes
from nemoconv.resharding.boxes import Shape, View, view
from nemoconv.resharding.layout import Layout

Sizes = Mapping[str, int]


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
    when every rank holds the whole. ``also``: other names of the same tensor (a dialect). ``when``:
    config values under which the rule applies. ``pad``: a factor that the Megatron side may extend
    with rows that mean nothing (the vocabulary). ``hf_when``: config values under which Hugging Face
    has the tensor; under others it is all zeros on the Megatron side and absent on the other.
    ``layers``: the layer set of the table that the rule is for, all layers by default.
    ``keeps_dtype``: a cast of the model leaves it alone.
    """

    nemo: str
    axes: str
    parts: tuple[Part, ...]
    cut: str | None = None
    also: tuple[str, ...] = ()
    when: tuple[tuple[str, Value], ...] = ()
    pad: str | None = None
    hf_when: tuple[tuple[str, Value], ...] = ()
    layers: str = ""
    keeps_dtype: bool = False

    @property
    def view(self) -> View:
        return view(self.axes)

    @property
    def holes(self) -> tuple[str, ...]:
        return holes(self.nemo)

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
        anywhere = self.nemo.format(**dict.fromkeys(self.holes, "*"))
        pieces = layout.pieces(size, FIELD_NAMES.get(self.cut, self.cut), anywhere)
        for rank, (first, length) in enumerate(pieces):
            for position in range(outer):
                start, box = [0] * len(shape), list(shape)
                start[axis] = (position * size + first) * inner
                box[axis] = length * inner
                yield rank, tuple(start), tuple(box)


#: what the config calls the sizes that a layout divides, for messages
FIELD_NAMES = {
    "group": "num_query_groups",
    "ffn": "ffn_hidden_size",
    "moe_ffn": "moe_ffn_hidden_size",
    "shared_ffn": "moe_shared_expert_intermediate_size",
    "heads": "num_attention_heads",
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

    ``architecture`` is the Hugging Face ``model_type``. ``ignored`` lists tensors that are derived at
    load time and carry nothing; ``tied`` pairs of (copy, original) that a tied model may hold twice.
    ``modules`` are the Megatron modules that keep an ``_extra_state`` object. ``sizes`` gives the sizes
    of factors and holes; ``layer_sets`` the layers of each kind where layers differ, which Megatron then
    stores one by one instead of stacked. ``nemo`` names the NeMo 2 classes written into ``context/``.
    ``verified`` says against whom the table was proved.
    """

    architecture: str
    hf_class: str
    fields: tuple[ConfigRule, ...]
    rules: tuple[Rule, ...]
    nemo: NemoClasses
    modules: tuple[Module, ...] = ()
    ignored: tuple[str, ...] = ()
    tied: tuple[tuple[str, str], ...] = ()
    sizes: Callable[[Mapping[str, Value]], dict[str, int]] = attention_sizes
    layer_sets: Callable[[Mapping[str, Value]], Mapping[str, frozenset[int]]] | None = None
    verified: tuple[str, ...] = ()
    origin: str = field(default="nemoconv", compare=False)

    def __post_init__(self) -> None:
        """Refuse a table that could not work in both directions. Raises ValueError."""
        seen: set[tuple[str, tuple[tuple[str, Value], ...], str]] = set()
        for rule in self.rules:
            factors = set(rule.view.factors)
            for name in (rule.nemo, *rule.also, *(part.hf for part in rule.parts)):
                picked = {first for part in rule.parts if part.hf == name for _, first, _, _ in part.window}
                if set(holes(name)) | (picked & set(rule.holes)) != set(rule.holes):
                    raise ValueError(f"{self.architecture}: {name} and {rule.nemo} have other holes")
                key = (name, rule.when, rule.layers)
                if key in seen and not any(part.hf == name and part.window for part in rule.parts):
                    raise ValueError(f"{self.architecture}: {name} is named by two rules")
                seen.add(key)
            for part in rule.parts:
                named = set(part.view.factors) | {factor for factor, _, _ in part.at}
                if named != factors:
                    raise ValueError(f"{self.architecture}: {part.hf} does not place {factors ^ named}")
            if not {rule.cut, rule.pad} - {None} <= factors:
                raise ValueError(f"{self.architecture}: {rule.nemo} cuts or pads an axis it lacks")

    def instances(self, config: Mapping[str, Value], sizes: Sizes) -> Iterator[Instance]:
        """Every rule that applies, once for each layer (and expert) it names, in model order."""
        rules = [rule for rule in self.rules if rule.applies(config)]
        first = next((i for i, rule in enumerate(rules) if "layer" in rule.holes), len(rules))
        layered = [rule for rule in rules if "layer" in rule.holes]
        for rule in rules[:first]:
            yield Instance(rule, {}, 0, rule.in_hf(config))
        sets = self.layer_sets(config) if self.layer_sets else {}
        for layer in range(sizes["layers"]):
            for rule in layered:
                if rule.layers and layer not in sets[rule.layers]:
                    continue
                others = [hole for hole in rule.holes if hole != "layer"]
                for index in product(*(range(sizes[HOLE_SIZES[hole]]) for hole in others)):
                    named = {"layer": layer, **dict(zip(others, index, strict=True))}
                    yield Instance(rule, named, layer, rule.in_hf(config))
        for rule in rules[first:]:
            if "layer" not in rule.holes:
                yield Instance(rule, {}, sizes["layers"] - 1, rule.in_hf(config))


@dataclass(frozen=True, slots=True)
class Instance:
    """A rule for one layer. ``layer`` is the layer whose pipeline stage holds it: embeddings live with
    the first, the final norm and the output layer with the last."""

    rule: Rule
    index: dict[str, int]
    layer: int
    in_hf: bool

    @property
    def nemo(self) -> str:
        return self.rule.nemo.format(**self.index)


#: which size bounds a hole
HOLE_SIZES = {"expert": "experts"}


def check_layout(table: Table, config: Mapping[str, Value], sizes: Sizes, layout: Layout) -> None:
    """Raise LayoutError, naming the sizes that would do, unless the layout divides the model."""
    layout.check(sizes["layers"])
    layout.check_experts(sizes.get("experts", 1))
    for rule in table.rules:
        if rule.applies(config) and rule.cut != rule.pad:
            next(rule.fragments(sizes, layout))
