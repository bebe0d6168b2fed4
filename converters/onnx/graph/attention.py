"""Attention: where it gets queries, keys and values from (three tensors, one, or latents), and what computes
with them and a cache, in two flavours: ONNX's own operator, or onnxruntime's GroupQueryAttention.

A flavour is an object that adds what all layers share (masks, lengths) when it is first asked for it.
Queries, keys and values come as [batch, sequence, heads * head_dim].

Sources: the operators Attention and RotaryEmbedding of ONNX's Operators.md;
docs/ContribOperators.md of onnxruntime for GroupQueryAttention.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy

from ....errors import UnsupportedConfig
from ....mappings.hf.fields import Value
from .builder import BOOL, FLOAT32, INT32, INT64, MICROSOFT, Graph
from .modules import Modules
from .rope import Frequencies, yarn_scale

#: of the norms of latents, whatever the config says of others
#: (``DeepseekV3Attention`` of transformers, and of the code that came with the models)
_LATENT_EPSILON: Final = 1e-6

#: what onnxruntime's GroupQueryAttention wants the size of a head to be a multiple of
#: (contrib_ops/cpu/bert/group_query_attention_helper.h)
_MULTIPLE: Final = 8


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """The attention of one layer. ``window``: how many tokens one sees, itself among them; ``chunk``: only
    those in the same run of so many. Of ``head_dim`` elements of a head, the first ``turned`` are rotated if
    that is told, and the first ``value_dim`` of a value mean something."""

    queries: int
    groups: int
    head_dim: int
    scale: float
    soft_cap: float | None = None
    window: int | None = None
    chunk: int | None = None
    turned: int | None = None
    value_dim: int | None = None


class AttentionFlavor(ABC):
    """What a flavour offers to the layers of one graph."""

    #: onnxruntime-genai may keep past and present in one buffer of the longest length
    shares_cache: ClassVar[bool] = False
    #: what the mask tells about: past and new tokens
    masked: ClassVar[str] = "total_sequence_length"

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.mask = graph.input("attention_mask", INT64, ["batch_size", self.masked])
        self.positions = self._positions()

    def _positions(self) -> str:
        """Places of the new tokens [batch, sequence]."""
        return self.graph.input("position_ids", INT64, ["batch_size", "sequence_length"])

    def rotate(self, x: str, heads: int, frequencies: Frequencies, *, neighbours: bool = False) -> str:
        """Turn the first ``frequencies.dimensions`` elements of each head by position: halves are paired, or
        neighbours."""
        cosines, sines = self._angles(frequencies)
        return self.graph.op(
            "RotaryEmbedding",
            x,
            cosines,
            sines,
            num_heads=heads,
            rotary_embedding_dim=frequencies.dimensions,
            interleaved=1 if neighbours else None,
        )

    def _angles(self, frequencies: Frequencies) -> tuple[str, str]:
        """Cosines and sines [batch, sequence, dimensions / 2], computed as the positions come: a table
        of all positions would have to lie in the file, and a long context takes 64 MiB."""
        said = frequencies.inverse.tobytes() + str(frequencies.factor).encode()
        kind = hashlib.sha256(said).hexdigest()[:8]
        return self.graph.once(f"rotation.{kind}", lambda: self._new_angles(frequencies))

    def _new_angles(self, frequencies: Frequencies) -> tuple[str, str]:
        graph = self.graph
        positions = graph.op("Unsqueeze", self.positions, graph.constant([2]))
        inverse = graph.constant(frequencies.inverse, FLOAT32)
        angles = graph.op("Mul", graph.cast(positions, FLOAT32), inverse)
        cosines, sines = graph.op("Cos", angles), graph.op("Sin", angles)
        if frequencies.factor != 1.0:
            factor = graph.constant(frequencies.factor, FLOAT32)
            cosines, sines = graph.op("Mul", cosines, factor), graph.op("Mul", sines, factor)
        return graph.to_compute(cosines, FLOAT32), graph.to_compute(sines, FLOAT32)

    @abstractmethod
    def attend(
        self, layer: int, heads: AttentionSpec, query: str, key: str, value: str, sinks: str = ""
    ) -> str:
        """[batch, sequence, heads * head_dim]; reads and writes the layer's cache.

        ``sinks`` [heads] are logits that take part in the softmax and have no value.
        """


def cache_names(layer: int) -> tuple[str, str, str, str]:
    """Past key and value, present key and value."""
    return (
        f"past_key_values.{layer}.key",
        f"past_key_values.{layer}.value",
        f"present.{layer}.key",
        f"present.{layer}.value",
    )


class StandardAttention(AttentionFlavor):
    """ai.onnx Attention with a boolean mask, so that any padding of a batch is right."""

    def attend(
        self, layer: int, heads: AttentionSpec, query: str, key: str, value: str, sinks: str = ""
    ) -> str:
        past_key, past_value, present_key, present_value = cache_names(layer)
        if sinks:
            return self._attend_with_sinks(layer, heads, query, key, value, sinks)
        return self.graph.ops(
            "Attention",
            query,
            key,
            value,
            self._mask(heads.window, heads.chunk),
            past_key,
            past_value,
            outputs=["", present_key, present_value],
            q_num_heads=heads.queries,
            kv_num_heads=heads.groups,
            scale=heads.scale,
            softcap=heads.soft_cap,
        )[0]

    def _attend_with_sinks(
        self, layer: int, heads: AttentionSpec, query: str, key: str, value: str, sinks: str
    ) -> str:
        """A sink is one more token whose key and value are zero: its score is what the mask adds."""
        graph = self.graph
        past_key, past_value, present_key, present_value = cache_names(layer)
        extended = []
        for new, past, present in ((key, past_key, present_key), (value, past_value, present_value)):
            split = graph.op("Reshape", new, graph.constant([0, 0, heads.groups, heads.head_dim]))
            by_head = graph.op("Transpose", split, perm=[0, 2, 1, 3])
            graph.op("Concat", past, by_head, axis=2, output=present)
            extended.append(graph.op("Pad", present, graph.constant([0, 0, 0, 0, 0, 0, 1, 0])))
        split = graph.op("Reshape", query, graph.constant([0, 0, heads.queries, heads.head_dim]))
        queries = graph.op("Transpose", split, perm=[0, 2, 1, 3])
        seen = graph.op(
            "Where", self._mask(heads.window, heads.chunk), graph.scalar(0.0), graph.scalar(-math.inf)
        )
        column = graph.op("Reshape", sinks, graph.constant([1, heads.queries, 1, 1]))
        every_head = graph.constant(numpy.zeros((1, heads.queries, 1, 1)), graph.compute)
        # a new token sees itself, so the greatest of its row is 0: a column of the right shape
        zeros = graph.op("ReduceMax", seen, graph.constant([3]), keepdims=1)
        beside = graph.op("Add", column, zeros)
        mask = graph.op("Concat", graph.op("Add", seen, every_head), beside, axis=3)
        mixed = graph.op("Attention", queries, *extended, mask, scale=heads.scale)
        joined = graph.op("Transpose", mixed, perm=[0, 2, 1, 3])
        return graph.op("Reshape", joined, graph.constant([0, 0, heads.queries * heads.head_dim]))

    def _mask(self, window: int | None, chunk: int | None) -> str:
        """[batch, 1, sequence, total]: which tokens of the row each new token sees.

        A new token always sees itself: a row of padding would otherwise see nothing, which the softmax
        of some kernels answers with NaN.
        """
        key = f"chunk.{chunk}" if chunk else f"mask.{window or 'full'}"
        return self.graph.once(key, lambda: self._new_mask(window, chunk))

    def _new_mask(self, window: int | None, chunk: int | None) -> str:
        graph = self.graph
        zero, one = graph.constant(0), graph.constant(1)
        total = graph.op("Gather", graph.op("Shape", self.mask), one)
        length = graph.op("Gather", graph.op("Shape", "input_ids"), one)
        keys = graph.op("Range", zero, total, one)
        new = graph.op("Range", graph.op("Sub", total, length), total, one)
        queries = graph.op("Unsqueeze", new, graph.constant([1]))
        before = graph.op("LessOrEqual", keys, queries)
        if window is not None:
            near = graph.op("Greater", keys, graph.op("Sub", queries, graph.constant(window)))
            before = graph.op("And", before, near)
        real = graph.op("Unsqueeze", graph.cast(self.mask, BOOL), graph.constant([1, 2]))
        if chunk is not None:
            before = graph.op("And", before, self._same_chunk(keys, queries, chunk))
        return graph.op("Or", graph.op("And", before, real), graph.op("Equal", keys, queries))

    def _same_chunk(self, keys: str, queries: str, chunk: int) -> str:
        """[batch, 1, sequence, total]: whether two tokens lie in the same run of ``chunk``, counted from the
        first real token of a row."""
        graph = self.graph
        padding = graph.op("ArgMax", self.mask, axis=1, keepdims=1)  # [batch, 1]
        count = graph.constant(chunk)
        of_keys, of_queries = (
            graph.op("Div", graph.op("Max", graph.op("Sub", places, padding), graph.constant(0)), count)
            for places in (keys, graph.op("Squeeze", queries, graph.constant([1])))
        )
        across = graph.op("Unsqueeze", of_keys, graph.constant([1, 2]))
        down = graph.op("Unsqueeze", of_queries, graph.constant([1, 3]))
        return graph.op("Equal", across, down)


class GroupQueryAttention(AttentionFlavor):
    """onnxruntime's operator. It knows the length of each row only: padding must be on the right."""

    shares_cache = True

    def attend(
        self, layer: int, heads: AttentionSpec, query: str, key: str, value: str, sinks: str = ""
    ) -> str:
        if heads.chunk is not None:
            raise UnsupportedConfig(
                "attention in chunks cannot be said with onnxruntime's GroupQueryAttention",
                hint="leave out --flavor genai",
            )
        if heads.head_dim % _MULTIPLE:
            raise UnsupportedConfig(
                f"heads of {heads.head_dim} elements (head_dim): onnxruntime's GroupQueryAttention takes "
                f"multiples of {_MULTIPLE} only",
                hint="leave out --flavor genai",
            )
        past_key, past_value, present_key, present_value = cache_names(layer)
        last, total = self.graph.once("lengths", self._row_lengths)
        return self.graph.ops(
            "GroupQueryAttention",
            query,
            key,
            value,
            past_key,
            past_value,
            last,
            total,
            *(("", "", "", "", sinks) if sinks else ()),
            outputs=["", present_key, present_value],
            domain=MICROSOFT,
            num_heads=heads.queries,
            kv_num_heads=heads.groups,
            scale=heads.scale,
            softcap=heads.soft_cap,
            local_window_size=heads.window,
        )[0]

    def _row_lengths(self) -> tuple[str, str]:
        """Place of the last token of each row, and the length of the longest row, as 32-bit numbers."""
        graph = self.graph
        real = graph.op("ReduceSum", self.mask, graph.constant([1]), keepdims=1)
        last = graph.cast(graph.op("Sub", real, graph.constant(1)), INT32)
        total = graph.op("Gather", graph.op("Shape", self.mask), graph.constant(1))
        return last, graph.cast(total, INT32)


class BidirectionalAttention(AttentionFlavor):
    """ai.onnx Attention without a cache: every token sees all real ones of its row. Places are counted from
    the start of the row, padding too."""

    masked = "sequence_length"

    def _positions(self) -> str:
        graph = self.graph
        with graph.scope("positions"):
            sizes = graph.op("Shape", "input_ids")
            length = graph.op("Gather", sizes, graph.constant(1))
            return graph.op("Expand", graph.op("Range", graph.constant(0), length, graph.constant(1)), sizes)

    def attend(
        self, layer: int, heads: AttentionSpec, query: str, key: str, value: str, sinks: str = ""
    ) -> str:
        return self.graph.op(
            "Attention",
            query,
            key,
            value,
            self.graph.once("mask", self._mask),
            q_num_heads=heads.queries,
            kv_num_heads=heads.groups,
            scale=heads.scale,
        )

    def _mask(self) -> str:
        """[batch, 1, sequence, sequence]"""
        graph, one = self.graph, self.graph.constant([1])
        real = graph.op("Unsqueeze", graph.cast(self.mask, BOOL), graph.constant([1, 2]))
        length = graph.op("Gather", graph.op("Shape", "input_ids"), one)
        return graph.op("Expand", real, graph.op("Concat", one, one, length, one, axis=0))


FLAVORS: Final[Mapping[str, type[AttentionFlavor]]] = {"std": StandardAttention, "genai": GroupQueryAttention}


def _usual_heads(config: Mapping[str, Value]) -> AttentionSpec:
    width = config["kv_channels"]
    scale = float(config.get("query_pre_attn_scalar") or width) ** -0.5
    return AttentionSpec(config["num_attention_heads"], config["num_query_groups"], width, scale)


@dataclass(frozen=True, slots=True)
class SeparateProjections:
    """Query, key and value of three tensors."""

    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"

    def heads(self, config: Mapping[str, Value]) -> AttentionSpec:
        return _usual_heads(config)

    def build(self, modules: Modules, x: str, layer: str, config: Mapping[str, Value]) -> list[str]:
        return [modules.linear(x, layer + name) for name in (self.query, self.key, self.value)]


@dataclass(frozen=True, slots=True)
class PackedProjections:
    """Query, key and value of one tensor: one below the other, or with ``by_group`` so for every group of
    query heads that share a key."""

    name: str
    by_group: bool = False

    def heads(self, config: Mapping[str, Value]) -> AttentionSpec:
        return _usual_heads(config)

    def build(self, modules: Modules, x: str, layer: str, config: Mapping[str, Value]) -> list[str]:
        graph, packed, heads = modules.graph, modules.linear(x, layer + self.name), self.heads(config)
        runs = heads.groups if self.by_group else 1
        sizes = [count // runs * heads.head_dim for count in (heads.queries, heads.groups, heads.groups)]
        by_run = graph.op("Reshape", packed, graph.constant([-1, runs, sum(sizes)]))
        found = graph.ops("Split", by_run, graph.constant(sizes), outputs=3, axis=-1)
        return [
            graph.op("Reshape", one, graph.constant([-1, runs * size]))
            for one, size in zip(found, sizes, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class LatentProjections:
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

    def heads(self, config: Mapping[str, Value]) -> AttentionSpec:
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
        return AttentionSpec(count, count, width, scale, turned=turned, value_dim=value)

    def build(self, modules: Modules, x: str, layer: str, config: Mapping[str, Value]) -> list[str]:
        graph, heads = modules.graph, self.heads(config)
        plain, turned, value = config["qk_head_dim"], config["qk_pos_emb_head_dim"], config["v_head_dim"]
        if config["q_lora_rank"]:
            low = modules.linear(x, layer + self.query_down)
            latent = modules.norm(low, layer + self.query_norm, _LATENT_EPSILON)
            query = modules.linear(latent, layer + self.query_up)
        else:
            query = modules.linear(x, layer + self.query)
        query = graph.op("Reshape", query, graph.constant([-1, heads.queries, plain + turned]))
        query_plain, query_turned = graph.ops(
            "Split", query, graph.constant([plain, turned]), outputs=2, axis=-1
        )
        both = modules.linear(x, layer + self.down)
        rank = graph.constant([config["kv_lora_rank"], turned])
        latent, key_turned = graph.ops("Split", both, rank, outputs=2, axis=-1)
        latent = modules.norm(latent, layer + self.norm, _LATENT_EPSILON)
        wide = graph.op(
            "Reshape",
            modules.linear(latent, layer + self.up),
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


Projections = SeparateProjections | PackedProjections | LatentProjections
