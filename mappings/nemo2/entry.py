"""The fields of NeMo 2's config that follow from an architecture's blocks and its rules for config.json."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from ...formats.text.fiddle import Symbol
from ..blocks.attention import Attention, Latent
from ..blocks.mlp import Mlp
from ..blocks.place import There
from ..blocks.stack import Stack
from ..hf.fields import ConfigRule, Value
from .classes import Defaults, family
from .fields import (
    DECODER,
    NO_BIASES,
    FusedGelu,
    NemoClasses,
    NemoFixed,
    NemoRule,
    NemoWindow,
    Same,
    Unused,
    with_rules,
)
from .fields_moe import DEEPSEEK, MOE_DECODER, LayerFreq
from .symbols import GELU, SILU, SQUARED_RELU, TANH_GELU

#: NeMo's functions, by transformers' names of activations
FUNCTIONS: Final[Mapping[str, Symbol]] = {
    "silu": SILU,
    "gelu_pytorch_tanh": TANH_GELU,
    "relu2": SQUARED_RELU,
}


@dataclass(frozen=True, slots=True)
class Nemo2:
    """NeMo 2's classes of an architecture: the module that they are of, the model's, and its config's.

    ``rules`` own fields in place of those that follow, or beside them. ``defaults``: the config classes with
    what each takes for fields that are not set, where they are not ``config`` and all that derive from it in
    its module, see :func:`~nemoconv.mappings.nemo2.classes.family`. ``scaled_config``: the class to write for
    llama3 rotary scaling. ``modules``: further modules whose config classes ``defaults`` holds.
    ``arguments``: what the model class takes besides its config. ``read_as``: an architecture with the same
    config, which is meant where neither a field nor a manifest tells.
    """

    module: str
    model: str
    config: str
    rules: tuple[NemoRule, ...] = ()
    defaults: Mapping[str, Defaults] | None = field(default=None, hash=False)
    scaled_config: str | None = None
    modules: tuple[str, ...] = ()
    arguments: tuple[tuple[str, Value], ...] = ()
    read_as: str = ""

    def classes(self, stack: Stack, config: Iterable[ConfigRule]) -> NemoClasses:
        """The classes with all rules."""
        known = family(self.config) if self.defaults is None else self.defaults
        following = tuple(_said(rule, known[self.config]) for rule in fields(stack, config))
        return NemoClasses(
            self.module,
            self.model,
            self.config,
            known,
            rules=with_rules(following, *self.rules),
            scaled_config=self.scaled_config,
            modules=self.modules,
            arguments=self.arguments,
            read_as=self.read_as,
        )


def _said(rule: NemoRule, defaults: Defaults) -> NemoRule:
    """A field with one value is written where the class would take another one."""
    if type(rule) is not NemoFixed or rule.name not in defaults:
        return rule
    return replace(rule, written=rule.written or defaults[rule.name] != rule.value)


def fields(stack: Stack, config: Iterable[ConfigRule]) -> tuple[NemoRule, ...]:
    """The rules for a config class that follow from a decoder's blocks and from what config.json says."""
    blocks = stack.blocks
    base = DEEPSEEK if isinstance(blocks.attention, Latent) else MOE_DECODER if blocks.mixture else DECODER
    own = (*_biases(stack, config), *_layers(stack), *_positions(stack, config), *_mixture(stack))
    return with_rules(base, *own)


def _flag(name: str, there: There | None) -> Iterator[NemoRule]:
    """A field that says whether a tensor is there: always, as the config says, or never (the base's own)."""
    if there:
        yield Same(name) if there.when else NemoFixed(name, True, written=True)


def _biases(stack: Stack, config: Iterable[ConfigRule]) -> Iterator[NemoRule]:
    attention, mlp, mixture = stack.blocks.attention, stack.blocks.mlp, stack.blocks.mixture
    mine = attention if isinstance(attention, Attention) else Attention()
    inner = (isinstance(mlp, Mlp) and mlp.bias) or (mine.output_bias if mixture and mixture.biases else None)
    if mine.output_bias and inner:
        if not any("add_bias_linear" in rule.fields for rule in config):
            yield from _flag("add_bias_linear", mine.output_bias)
        return
    yield NO_BIASES
    yield from _flag("add_qkv_bias", mine.bias)


def _layers(stack: Stack) -> Iterator[NemoRule]:
    """How a layer normalizes and what its MLP computes."""
    names, blocks = stack.names, stack.blocks
    if isinstance(blocks.attention, Attention) and names.query_norm:
        yield from _flag("qk_layernorm", blocks.attention.head_norms)
    if blocks.norm.kind == "layer":
        yield NemoFixed("normalization", "LayerNorm", written=True)
    if blocks.norm.offset:
        yield NemoFixed("layernorm_zero_centered_gamma", True, written=True)
    if not names.gate and not blocks.mixture:
        yield NemoFixed("gated_linear_unit", False, written=True)
    if blocks.activation is None and not names.gate and not blocks.mixture:
        yield FusedGelu(GELU, TANH_GELU)
    elif function := FUNCTIONS.get(blocks.activation or ""):
        yield NemoFixed("activation_func", function)


def _positions(stack: Stack, config: Iterable[ConfigRule]) -> Iterator[NemoRule]:
    names, blocks = stack.names, stack.blocks
    made = frozenset().union(*(rule.fields for rule in config))
    if blocks.neighbours and isinstance(blocks.attention, Attention):
        yield NemoFixed("rotary_interleaved", True, written=True)
    if "rotary_percent" in made:
        yield Same("rotary_percent")
    if "sliding_window" in made and not blocks.local_rope:
        yield NemoWindow()
    if names.positions:
        yield NemoFixed("position_embedding_type", "learned_absolute", written=True)
        yield Unused(("rotary_base", "rotary_percent", "seq_len_interpolation_factor"))


def _mixture(stack: Stack) -> Iterator[NemoRule]:
    mixture = stack.blocks.mixture
    if mixture and stack.names.correction:
        yield NemoFixed("moe_router_score_function", "sigmoid", written=True)
        yield NemoFixed("moe_router_enable_expert_bias", True, written=True)
    if mixture and mixture.layer_sets:
        yield LayerFreq()
