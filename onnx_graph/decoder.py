"""A decoder's graph: the blocks of an architecture put together for a model config.

Inputs and outputs have the names that optimum, onnxruntime-genai and transformers.js use: ``input_ids``,
``attention_mask`` (of past and new tokens), ``position_ids``, ``past_key_values.{i}.key|value`` ->
``logits``, ``present.{i}.key|value``. Batch and lengths are free. One that does not generate, but attends
both ways, has ``input_ids`` and ``attention_mask`` -> ``last_hidden_state``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from nemoconv import __version__
from nemoconv.mappings.config_fields import Value
from nemoconv.onnx_graph.architectures import Decoder
from nemoconv.onnx_graph.attention import FLAVORS, Attention, BothWays, Heads, cache_names
from nemoconv.onnx_graph.blocks import Parts, embedding, soft_cap
from nemoconv.onnx_graph.builder import INT64, Graph, Weight
from nemoconv.onnx_graph.rope import Frequencies, frequencies


def build(
    decoder: Decoder,
    config: Mapping[str, Value],
    weights: Mapping[str, Weight],
    flavor: str,
    properties: Mapping[str, str],
) -> bytes:
    """The model.onnx of a model config whose weights lie beside it, by their Hugging Face names.

    ``flavor``: "std" or "genai", see :mod:`nemoconv.onnx_graph.attention`. ``properties`` go into
    ``metadata_props``.

    Raises UnsupportedConfig for what has no graph, CorruptCheckpoint unless every weight is used.
    """
    graph = Graph(weights)
    ids = graph.input("input_ids", INT64, ["batch_size", "sequence_length"])
    attention = FLAVORS[flavor](graph) if decoder.generates else BothWays(graph)
    if decoder.generates:
        _declare_cache(graph, config)
    activation = decoder.activation or config["hidden_act"]
    parts = Parts(graph, decoder.norm, config["layernorm_epsilon"], activation, decoder.transposed_weights)
    model = _Model(decoder, config, parts, attention)
    x = model.tokens(ids)
    for layer in range(config["num_layers"]):
        with graph.scope(f"layers.{layer}"):
            x = model.layer(layer, x)
    with graph.scope("head"):
        model.logits(x) if decoder.generates else model.states(x)
    return graph.model(("nemoconv", __version__), properties)


def _declare_cache(graph: Graph, config: Mapping[str, Value]) -> None:
    def shape(length: str) -> list[int | str]:
        return ["batch_size", config["num_query_groups"], length, config["kv_channels"]]

    graph.output("logits", graph.compute, ["batch_size", "sequence_length", config["vocab_size"]])
    for layer in range(config["num_layers"]):
        past_key, past_value, present_key, present_value = cache_names(layer)
        for name in (past_key, past_value):
            graph.input(name, graph.compute, shape("past_sequence_length"))
        for name in (present_key, present_value):
            graph.output(name, graph.compute, shape("total_sequence_length"))


@dataclass(frozen=True, slots=True)
class _Model:
    decoder: Decoder
    config: Mapping[str, Value]
    parts: Parts
    attention: Attention

    def tokens(self, ids: str) -> str:
        """[tokens, hidden] of the token ids."""
        graph, decoder = self.parts.graph, self.decoder
        with graph.scope("embedding"):
            x = embedding(graph, decoder.embedding, ids)
            if decoder.positions:
                x = graph.op("Add", x, embedding(graph, decoder.positions, self.attention.positions))
            x = graph.op("Reshape", x, graph.constant([-1, self.config["hidden_size"]]))
            if decoder.scaled_embedding:
                x = graph.op("Mul", x, graph.scalar(self.config["hidden_size"] ** 0.5))
        return x

    def layer(self, number: int, x: str) -> str:
        graph, parts, decoder = self.parts.graph, self.parts, self.decoder
        at = decoder.layer.format(number)
        with graph.scope("attention"):
            attended = self._attend(number, at, parts.norm(x, at + decoder.attention_norm))
            if decoder.attention_output_norm:
                attended = parts.norm(attended, at + decoder.attention_output_norm)
        x = graph.op("Add", x, attended)
        with graph.scope("mlp"):
            computed = decoder.mlp.build(parts, parts.norm(x, at + decoder.mlp_norm), at, self.config)
            if decoder.mlp_output_norm:
                computed = parts.norm(computed, at + decoder.mlp_output_norm)
        return graph.op("Add", x, computed)

    def _attend(self, number: int, at: str, x: str) -> str:
        graph, parts, decoder = self.parts.graph, self.parts, self.decoder
        windowed = decoder.has_window(self.config, number)
        heads = self._heads(number, windowed=windowed)
        query, key, value = decoder.projections.build(parts, x, at, heads)
        if decoder.heads_norms:
            query, key = (
                parts.heads_norm(one, at + name, heads.head_dim)
                for one, name in zip((query, key), decoder.heads_norms, strict=True)
            )
        query, key, value = (self._by_row(one) for one in (query, key, value))
        turned = self._frequencies(windowed=windowed)
        if turned is not None:
            query = self.attention.rotate(query, heads.queries, turned)
            key = self.attention.rotate(key, heads.groups, turned)
        sinks = graph.weight(at + decoder.sinks) if decoder.sinks else ""
        mixed = self.attention.attend(number, heads, query, key, value, sinks)
        flat = graph.op("Reshape", mixed, graph.constant([-1, heads.queries * heads.head_dim]))
        return parts.linear(flat, at + decoder.attention_output)

    def _by_row(self, x: str, output: str = "") -> str:
        """[tokens, features] -> [batch, sequence, features]."""
        graph = self.parts.graph
        return graph.op("Reshape", x, graph.once("sizes", partial(_row_sizes, graph)), output=output)

    def _heads(self, number: int, *, windowed: bool) -> Heads:
        config = self.config
        width = config.get("query_pre_attn_scalar") or config["kv_channels"]
        return Heads(
            config["num_attention_heads"],
            config["num_query_groups"],
            config["kv_channels"],
            float(width) ** -0.5,
            config.get("attn_logit_softcapping"),
            config.get("sliding_window") if windowed else None,
        )

    def _frequencies(self, *, windowed: bool) -> Frequencies | None:
        if self.decoder.positions:
            return None
        return frequencies(self.config, local=windowed and self.decoder.local_rope)

    def states(self, x: str) -> None:
        graph, hidden = self.parts.graph, self.config["hidden_size"]
        self._by_row(self.parts.norm(x, self.decoder.final_norm), output="last_hidden_state")
        graph.output("last_hidden_state", graph.compute, ["batch_size", "sequence_length", hidden])

    def logits(self, x: str) -> None:
        graph, parts, decoder = self.parts.graph, self.parts, self.decoder
        tied = self.config["share_embeddings_and_output_weights"]
        normed = parts.norm(x, decoder.final_norm)
        weight = graph.weight((decoder.embedding if tied else decoder.head) + ".weight")
        found = graph.op("Gemm", normed, weight, transB=1)
        if self.config.get("final_logit_softcapping"):
            found = soft_cap(graph, found, self.config["final_logit_softcapping"])
        self._by_row(found, output="logits")


def _row_sizes(graph: Graph) -> str:
    """[batch, sequence, -1]."""
    return graph.op("Concat", graph.op("Shape", "input_ids"), graph.constant([-1]), axis=0)
