"""Blocks of attention: from queries, keys and values, or through latents.

Source: megatron/core/transformer/attention.py and multi_latent_attention.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from ..hf.fields import Value
from ..rules import fused_qkv, packed_qkv, same
from ..sizes import heads_sizes
from ..table import Rule
from .names import Names
from .place import ALWAYS, Place, There

#: the factors of what attention gives, and of the columns that take it
HEADS: Final = "(group query_head head_dim)"


@dataclass(frozen=True, slots=True)
class Attention:
    """Query, key and value of three tensors, or of one where they have one name; ``by_group``: as Megatron
    has them, the queries of a group before its key and value.

    ``bias``: of query, key and value; ``output_bias``: of the layer after it. ``head_norms``: when the norms
    of query and key are there. ``after``: what Megatron calls the norm of what attention gives, if names have
    one. ``on``: the set of layers that have it. ``stateless``: the module that mixes values keeps no
    ``_extra_state``, since it is NeMo's own.
    """

    bias: There | None = None
    output_bias: There | None = None
    head_norms: There = ALWAYS
    by_group: bool = False
    after: str = "self_attention.linear_proj.post_layernorm."
    on: str = ""
    stateless: bool = False

    def rules(self, names: Names, at: Place) -> Iterator[Rule]:
        """Input norm, projections, norms of heads, sinks, output, norm of the output."""
        for rule in self._rules(names, at):
            yield replace(rule, layers=self.on)

    def _rules(self, names: Names, at: Place) -> Iterator[Rule]:
        own = at.layer + "self_attention."
        if names.input_norm:
            other = at.layer + "input_layernorm."
            yield from at.norms(own + "linear_qkv.layer_norm_", names.the("input_norm"), other)
        yield self._projection(names, at, "weight", ALWAYS)
        if self.bias:
            yield self._projection(names, at, "bias", self.bias)
        for role, letter in (("query_norm", "q"), ("key_norm", "k")) if names.query_norm else ():
            norm, hf = f"{own}{letter}_layernorm.weight", names.the(role) + ".weight"
            yield same(norm, hf, "head_dim", when=self.head_norms.when)
        if names.sinks:
            offset = own + "core_attention.softmax_offset"
            yield same(offset, names.the("sinks"), "(group query_head)", cut="group")
        output = names.the("attention_output")
        yield from at.linear(own + "linear_proj", output, "hidden", HEADS, "group", self.output_bias)
        if names.attention_output_norm:
            yield from at.norms(at.layer + self.after, names.the("attention_output_norm"))

    def _projection(self, names: Names, at: Place, kind: str, there: There) -> Rule:
        """Weight or bias of what makes queries, keys and values."""
        nemo, bias = f"{at.layer}self_attention.linear_qkv.{kind}", kind == "bias"
        query = f"{names.the('query')}.{kind}"
        if self.by_group:
            axes = "(group head head_dim)" + ("" if bias else " hidden")
            return same(nemo, query, axes, cut="group", when=there.when)
        if names.packed:
            turned = at.transposed and not bias
            return packed_qkv(nemo, query, bias=bias, transposed=turned, when=there.when)
        three = (f"{names.the(role)}.{kind}" for role in ("query", "key", "value"))
        return fused_qkv(nemo, *three, bias=bias, when=there.when, hf_when=there.hf_when)

    def sizes(self, config: Mapping[str, Value]) -> dict[str, int]:
        """Of heads and their groups, and of runs of rows where q, k and v are one tensor."""
        return heads_sizes(config)


_LOW, _FULL = (("low_rank_query", True),), (("low_rank_query", False),)
#: Megatron's name, the role, the axes, the factor that is cut, when it is there
_LATENT: Final = (
    ("linear_q_proj.weight", "query", "(heads query_dim) hidden", "heads", _FULL),
    ("linear_q_down_proj.weight", "query_down", "query_rank hidden", None, _LOW),
    ("linear_q_up_proj.layer_norm_weight", "query_down_norm", "query_rank", None, _LOW),
    ("linear_q_up_proj.weight", "query_up", "(heads query_dim) query_rank", "heads", _LOW),
    ("linear_kv_down_proj.weight", "latent_down", "latent_turned hidden", None, ()),
    ("linear_kv_up_proj.layer_norm_weight", "latent_norm", "latent", None, ()),
    ("linear_kv_up_proj.weight", "latent_up", "(heads key_value_dim) latent", "heads", ()),
    ("linear_proj.weight", "attention_output", "hidden (heads value_dim)", "heads", ()),
)


@dataclass(frozen=True, slots=True)
class Latent:
    """DeepSeek's: keys and values of a latent, queries of another or, by ``low_rank_query``, of none."""

    def rules(self, names: Names, at: Place) -> Iterator[Rule]:
        """The norm before it stands alone; those of latents are parts of the layers after them."""
        own = at.layer + "self_attention."
        yield from at.norms(at.layer + "input_layernorm.", names.the("input_norm"))
        for nemo, role, axes, cut, when in _LATENT:
            letters = nemo.split("_")[1]
            other_names = (f"{own}{letters}_layernorm.weight",) if "norm" in nemo else ()
            yield same(
                own + nemo, names.the(role) + ".weight", axes, cut=cut, other_names=other_names, when=when
            )

    def sizes(self, config: Mapping[str, Value]) -> dict[str, int]:
        """Of heads and of latents; what is rotated lies behind what is not."""
        key, turned = config["qk_head_dim"], config["qk_pos_emb_head_dim"]
        return {
            "heads": config["num_attention_heads"],
            "query_dim": key + turned,
            "key_value_dim": key + config["v_head_dim"],
            "value_dim": config["v_head_dim"],
            "query_rank": config["q_lora_rank"] or 0,
            "latent": config["kv_lora_rank"],
            "latent_turned": config["kv_lora_rank"] + turned,
        }
