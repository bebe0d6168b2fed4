"""How attention gets its queries, keys and values: from one tensor, from three, or through latents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ....errors import UnsupportedConfig
from ....mappings.hf.fields import Value
from .attention import Heads
from .blocks import Parts
from .rope import yarn_scale

#: of the norms of latents, whatever the config says of others
#: (``DeepseekV3Attention`` of transformers, and of the code that came with the models)
_LATENT_EPSILON: Final = 1e-6


def _usual_heads(config: Mapping[str, Value]) -> Heads:
    width = config["kv_channels"]
    scale = float(config.get("query_pre_attn_scalar") or width) ** -0.5
    return Heads(config["num_attention_heads"], config["num_query_groups"], width, scale)


@dataclass(frozen=True, slots=True)
class Separate:
    """Query, key and value of three tensors."""

    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"

    def heads(self, config: Mapping[str, Value]) -> Heads:
        return _usual_heads(config)

    def build(self, parts: Parts, x: str, layer: str, config: Mapping[str, Value]) -> list[str]:
        return [parts.linear(x, layer + name) for name in (self.query, self.key, self.value)]


@dataclass(frozen=True, slots=True)
class Packed:
    """Query, key and value of one tensor: one below the other, or with ``by_group`` so for every group of
    query heads that share a key."""

    name: str
    by_group: bool = False

    def heads(self, config: Mapping[str, Value]) -> Heads:
        return _usual_heads(config)

    def build(self, parts: Parts, x: str, layer: str, config: Mapping[str, Value]) -> list[str]:
        graph, packed, heads = parts.graph, parts.linear(x, layer + self.name), self.heads(config)
        runs = heads.groups if self.by_group else 1
        sizes = [count // runs * heads.head_dim for count in (heads.queries, heads.groups, heads.groups)]
        by_run = graph.op("Reshape", packed, graph.constant([-1, runs, sum(sizes)]))
        found = graph.ops("Split", by_run, graph.constant(sizes), outputs=3, axis=-1)
        return [
            graph.op("Reshape", one, graph.constant([-1, runs * size]))
            for one, size in zip(found, sizes, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Latent:
    """DeepSeek's: keys and values of a latent, queries of another or of none, and a part of the key, the one
    that is rotated, which all heads share.

    What is rotated comes first in a head here and last in the weights: it is the same product. Values are
    extended with zeros to the width of keys, since onnxruntime's caches have one width.
    """

    query: str = "self_attn.q_proj"
    query_down: str = "self_attn.q_a_proj"
    query_norm: str = "self_attn.q_a_layernorm"
    query_up: str = "self_attn.q_b_proj"
    down: str = "self_attn.kv_a_proj_with_mqa"
    norm: str = "self_attn.kv_a_layernorm"
    up: str = "self_attn.kv_b_proj"

    def heads(self, config: Mapping[str, Value]) -> Heads:
        count = config["num_attention_heads"]
        width = config["qk_head_dim"] + config["qk_pos_emb_head_dim"]
        scale = float(width) ** -0.5 * _stretch(config) ** 2
        turned, value = config["qk_pos_emb_head_dim"], config["v_head_dim"]
        if value > width:
            raise UnsupportedConfig(
                f"values of {value} elements a head (v_head_dim) beside queries and keys of {width}: a "
                "graph's cache has one width, that of keys",
                hint="nothing released is like that; convert it to another format",
            )
        return Heads(count, count, width, scale, turned=turned, value_dim=value)

    def build(self, parts: Parts, x: str, layer: str, config: Mapping[str, Value]) -> list[str]:
        graph, heads = parts.graph, self.heads(config)
        plain, turned, value = config["qk_head_dim"], config["qk_pos_emb_head_dim"], config["v_head_dim"]
        if config["q_lora_rank"]:
            low = parts.linear(x, layer + self.query_down)
            latent = parts.norm(low, layer + self.query_norm, _LATENT_EPSILON)
            query = parts.linear(latent, layer + self.query_up)
        else:
            query = parts.linear(x, layer + self.query)
        query = graph.op("Reshape", query, graph.constant([-1, heads.queries, plain + turned]))
        query_plain, query_turned = graph.ops(
            "Split", query, graph.constant([plain, turned]), outputs=2, axis=-1
        )
        both = parts.linear(x, layer + self.down)
        rank = graph.constant([config["kv_lora_rank"], turned])
        latent, key_turned = graph.ops("Split", both, rank, outputs=2, axis=-1)
        latent = parts.norm(latent, layer + self.norm, _LATENT_EPSILON)
        wide = graph.op(
            "Reshape",
            parts.linear(latent, layer + self.up),
            graph.constant([-1, heads.groups, plain + value]),
        )
        key_plain, values = graph.ops("Split", wide, graph.constant([plain, value]), outputs=2, axis=-1)
        shared = graph.op("Unsqueeze", key_turned, graph.constant([1]))
        every_head = graph.op("Expand", shared, graph.constant([1, heads.groups, 1]))
        found = [
            graph.op("Concat", query_turned, query_plain, axis=-1),
            graph.op("Concat", every_head, key_plain, axis=-1),
            graph.op("Pad", values, graph.constant([0, 0, 0, 0, 0, heads.head_dim - value])),
        ]
        flat = graph.constant([-1, heads.queries * heads.head_dim])
        return [graph.op("Reshape", one, flat) for one in found]


def _stretch(config: Mapping[str, Value]) -> float:
    """By what YaRN stretches queries and keys of latent attention, each (``yarn_apply_mscale`` of
    transformers)."""
    scaling = config.get("rope_scaling") or {}
    weight = scaling.get("mscale_all_dim")
    return yarn_scale(scaling["factor"], weight) if weight else 1.0


Projections = Separate | Packed | Latent
