"""Decoders that differ from a Llama by a few words, and the standard rules for config.json."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from .architecture import Architecture
from .blocks.names import Names
from .blocks.stack import Blocks, Stack
from .hf.fields import ConfigRule, Dtype, Field, Fixed, HeadDim, Value
from .hf.rope import Rope
from .nemo2.entry import Nemo2
from .nemo2.fields import NemoClasses, NemoRule
from .nemo2.fields_moe import SetTo

#: a Llama's, with transformers' defaults
STANDARD: Final[tuple[ConfigRule, ...]] = (
    Field("num_hidden_layers", "num_layers", 32),
    Field("hidden_size", "hidden_size", 4096),
    Field("intermediate_size", "ffn_hidden_size", 11008),
    Field("num_attention_heads", "num_attention_heads", 32),
    Field("num_key_value_heads", "num_query_groups", default_from="num_attention_heads"),
    HeadDim(),
    Field("vocab_size", "vocab_size", 32000),
    Field("max_position_embeddings", "seq_length", 2048),
    Field("rms_norm_eps", "layernorm_epsilon", 1e-6, kind=float),
    Field("initializer_range", "init_method_std", 0.02, kind=float),
    Field("attention_dropout", "attention_dropout", 0.0, kind=float),
    Field("tie_word_embeddings", "share_embeddings_and_output_weights", False, kind=bool),
    Fixed("attention_bias", False),
    Fixed("mlp_bias", False),
    Fixed("hidden_act", "silu"),
    Rope(),
    Dtype(),
)
_NONE: Final[Mapping[str, Any]] = MappingProxyType({})


def standard(
    *own: ConfigRule,
    defaults: Mapping[str, Value] = _NONE,
    keys: Mapping[str, str] = _NONE,
    without: Collection[str] = (),
) -> tuple[ConfigRule, ...]:
    """The standard rules, with these ``defaults`` for keys that are not there, and other ``keys`` than a
    Llama's, but those for the keys ``without``. ``own`` rules take the place of those that own one of their
    keys or fields (of the last of them, if there are several); those that replace nothing come before rope
    and dtype.

    Raises ValueError for a default or a key that the standard rules do not have.
    """
    known = frozenset().union(*(rule.hf_keys for rule in STANDARD))
    if wrong := sorted({*keys, *without} - known | {*defaults} - known - {*keys.values()}):
        raise ValueError(f"the standard rules for config.json have no {', '.join(wrong)}")
    rules = [_changed(rule, defaults, keys) for rule in STANDARD if not rule.hf_keys & {*without}]
    place = {
        rule: max((i for i, each in enumerate(rules) if _displaces(rule, each)), default=-1) for rule in own
    }
    free = [rule for rule in own if place[rule] < 0]
    found: list[ConfigRule] = []
    for number, rule in enumerate(rules):
        if isinstance(rule, Rope | Dtype):
            found += free
            free = []
        found += [each for each in own if place[each] == number]
        if not any(_displaces(each, rule) for each in own):
            found.append(rule)
    return tuple(found)


def _displaces(rule: ConfigRule, other: ConfigRule) -> bool:
    return bool(rule.hf_keys & other.hf_keys or rule.fields & other.fields)


def _changed(rule: ConfigRule, defaults: Mapping[str, Value], keys: Mapping[str, str]) -> ConfigRule:
    if isinstance(rule, Field | Fixed):
        key = keys.get(rule.hf, rule.hf)
        rule = replace(rule, hf=key)
        if key in defaults:
            name = "default" if isinstance(rule, Field) else "value"
            rule = replace(rule, **{name: defaults[key]})
    elif isinstance(rule, HeadDim) and "head_dim" in defaults:
        return Field("head_dim", "kv_channels", defaults["head_dim"])
    elif isinstance(rule, Rope) and "rope_theta" in defaults:
        return Rope(defaults["rope_theta"])
    return rule


def plain_gpt(*rules: NemoRule, read_as: str = "") -> Nemo2:
    """NeMo 2's plain ``GPTConfig``, for decoders that have no class of their own in NeMo: it builds them from
    megatron-core's fields. ``rules`` own fields in place of those that follow.

    Source: nemo/collections/llm/gpt/model/base.py.
    """
    module = "nemo.collections.llm.gpt.model.base"
    return Nemo2(module, "GPTModel", "GPTConfig", (SetTo("hidden_dropout", 0.0), *rules), read_as=read_as)


def llama_like(
    model_type: str | tuple[str, ...],
    hf_class: str,
    *,
    names: Mapping[str, str] = _NONE,
    blocks: Blocks | None = None,
    defaults: Mapping[str, Value] = _NONE,
    keys: Mapping[str, str] = _NONE,
    config: Iterable[ConfigRule] = (),
    without: Collection[str] = (),
    nemo2: Nemo2 | NemoClasses | None = None,
    **more: Any,
) -> Architecture:
    """A decoder: a Llama but for what is given.

    ``names`` by role and ``defaults`` by key of config.json say what differs; ``keys`` that a Llama calls
    otherwise, ``without`` those that there are not; ``config`` rules own keys in place of the standard ones.
    Without ``nemo2``, NeMo 2 builds it from its plain config class. ``more`` are fields of
    :class:`~nemoconv.mappings.architecture.Architecture`.

    Raises ValueError for a role or a key that a Llama does not have.
    """
    types = (model_type,) if isinstance(model_type, str) else model_type
    if unknown := sorted({*names} - {*Names.__dataclass_fields__}):
        raise ValueError(f"{types[0]}: a decoder has no part {', '.join(unknown)}")
    called = Names(**names)
    made = blocks or Blocks()
    if made.activation:
        defaults = {"hidden_act": made.activation, **defaults}
    biased = {
        key
        for key, block in (("attention_bias", made.attention), ("mlp_bias", made.mlp))
        if getattr(block, "bias", None)
    }
    more.setdefault("ignored", (called.layer + "self_attn.rotary_emb.inv_freq",))
    return Architecture(
        types,
        hf_class,
        (Stack(called, made),),
        tuple(
            rule
            for rule in standard(*config, defaults=defaults, keys=keys, without=without)
            if rule in config or not rule.hf_keys & biased
        ),
        nemo2 or plain_gpt(),
        **more,
    )
