"""LoRA adapters of NeMo 1's GPT models <-> those of Hugging Face's PEFT, for any table of a decoder.

An adapter adds ``linear_out(linear_in(x)) * alpha / dim`` to what a linear layer gives. NeMo's own variant
has one for the fused q, k and v, whose ``linear_out`` has the rows of ``linear_qkv`` (a group's queries, its
key, its value), and one for the fused gate and up; PEFT has one for each matrix, so that they share their
``lora_A``. The variant ``canonical`` has one for each matrix, too.

Source: nemo/collections/nlp/parts/peft_config.py, modules/common/megatron/adapters/mcore_mixins.py and
parallel_adapters.py of NeMo 1.20 to 2.4; peft/tuners/lora/layer.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from ..errors import UnsupportedConfig
from .blocks.stack import DECODER_LAYER
from .hf.fields import Value
from .table import Part, Rule, Table

#: of PEFT's names, before those of the model
PREFIX: Final = "base_model.model."
#: the field of a model config that says the adapters' inner size
RANK: Final = "lora_rank"


@dataclass(frozen=True, slots=True)
class _Adapter:
    """Where NeMo keeps the adapter of a linear layer, and what of it tensor parallelism cuts: the rank or
    the columns of ``linear_in``, the rows of ``linear_out``."""

    linear: str
    place: str
    name: str
    parts: tuple[str, ...] = ()
    by_rank: bool = True


_UNFUSED: Final = "lora_unfused_"
_ADAPTERS: Final = (
    _Adapter("self_attention.linear_qkv", "self_attention", "lora_kqv_adapter"),
    _Adapter(
        "self_attention.linear_qkv",
        "self_attention",
        _UNFUSED + "kqv_adapter",
        ("q_adapter", "k_adapter", "v_adapter"),
    ),
    _Adapter("self_attention.linear_proj", "self_attention", "lora_dense_attention_adapter", by_rank=False),
    _Adapter("mlp.linear_fc1", "mlp", "lora_hto4h_adapter"),
    _Adapter("mlp.linear_fc1", "mlp", _UNFUSED + "hto4h_adapter", ("gate_adapter", "up_adapter")),
    _Adapter("mlp.linear_fc2", "mlp", "lora_4htoh_adapter", by_rank=False),
)


def adapter_table(table: Table, held: Collection[str]) -> Table:
    """The table of the adapters ``held`` (names of a NeMo checkpoint or of a PEFT directory) of a model.

    Raises UnsupportedConfig for a table whose linear layers PEFT names otherwise.
    """
    ours = any(".adapter_layer." in name for name in held)
    rules = tuple(rule for rule in _rules(table, held if ours else None) if _is_held(rule, held))
    return replace(table, rules=rules, modules=(), tied=(), ignored=(), layer_sets=None, sizes=_Sizes(table))


def told(table: Table) -> dict[str, Value]:
    """The fields of a model config that say which layers have adapters."""
    return {key: value for rule in table.rules for key, value in rule.when if key.startswith("lora_")}


def target_modules(table: Table) -> list[str]:
    """What PEFT calls the layers that have adapters."""
    return sorted(key.removeprefix("lora_") for key in told(table))


@dataclass(frozen=True, slots=True)
class _Sizes:
    """The sizes of the model's table, and the adapters' rank."""

    table: Table

    def __call__(self, config: Mapping[str, Value]) -> dict[str, int]:
        return self.table.sizes(config) | {"rank": config[RANK]}


def _is_held(rule: Rule, held: Collection[str]) -> bool:
    """Whether the first layer has it: all layers have the same adapters."""
    first = (rule.nemo, *(part.hf for part in rule.parts))
    return any(name.format(layer=0) in held for name in first)


def _rules(table: Table, held: Collection[str] | None) -> Iterator[Rule]:
    """Of the variant that NeMo holds; of PEFT's own kind, one for each matrix, without names of NeMo's."""
    linears = {rule.nemo: rule for rule in table.rules}
    for adapter in _ADAPTERS:
        rule = linears.get(f"{DECODER_LAYER}{adapter.linear}.weight")
        if rule is None or len(rule.view.axes) != 2:
            continue
        at = f"{DECODER_LAYER}{adapter.place}.adapter_layer.{adapter.name}."
        if held is None and not adapter.parts and adapter.by_rank:
            continue
        if held is not None and not any(name.startswith(at.format(layer=0)) for name in held):
            continue
        if not adapter.parts:
            yield from _pair(at, rule, adapter.by_rank)
        elif len(adapter.parts) == len(rule.parts):
            for name, part in zip(adapter.parts, rule.parts, strict=True):
                # a part by itself is no box of the fused matrix any more
                axes = part.axes.replace(" head ", " query_head ")
                alone = replace(rule, axes=axes, parts=(Part(part.hf, axes, window=part.window),))
                yield from _pair(f"{at}{name}.", alone, adapter.by_rank)


def _pair(at: str, rule: Rule, by_rank: bool) -> tuple[Rule, ...]:
    """``linear_in`` and ``linear_out`` of one adapter of the linear layer that ``rule`` describes; the former
    once for each ``lora_A`` that PEFT keeps of it."""
    rows, columns = rule.view.axes
    inner: dict[str, Part] = {}
    outer = []
    for part in rule.parts:
        own, into = part.view.axes if len(part.view.axes) == 2 else ((), ())
        if into != columns:
            raise UnsupportedConfig(
                f"{part.hf}: is stored transposed or in another shape, whose adapters are not known"
            )
        name = PREFIX + part.hf.removesuffix(".weight")
        inner.setdefault(name, Part(f"{name}.lora_A.weight", f"rank {_text(columns)}"))
        outer.append(Part(f"{name}.lora_B.weight", f"{_text(own)} rank", part.at, part.window))
    out_cut = rule.cut if by_rank else "hidden"
    in_cut = "rank" if by_rank else rule.cut
    return (
        *(
            Rule(
                at + "linear_in.weight",
                f"rank {_text(columns)}",
                (part,),
                cut=in_cut,
                when=((f"lora_{name.rpartition('.')[2]}", True),),
            )
            for name, part in inner.items()
        ),
        Rule(at + "linear_out.weight", f"{_text(rows)} rank", tuple(outer), cut=out_cut),
    )


def _text(axis: tuple[str, ...]) -> str:
    return f"({' '.join(axis)})"


def is_adapter(table: Table) -> bool:
    """Whether a table is of adapters alone, such as :func:`adapter_table` gives."""
    return all(part.hf.startswith(PREFIX) for rule in table.rules for part in rule.parts)
