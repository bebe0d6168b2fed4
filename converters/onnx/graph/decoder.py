"""A decoder's graph: the blocks of an architecture put together for a model config.

Inputs and outputs have the names that optimum, onnxruntime-genai and transformers.js use: ``input_ids``,
``attention_mask`` (of past and new tokens), ``position_ids``, ``past_key_values.{i}.key|value`` ->
``logits``, ``present.{i}.key|value``. Batch and lengths are free. One that does not generate, but attends
both ways, has ``input_ids`` and ``attention_mask`` -> ``last_hidden_state``, or ``logits`` of whole rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from ....errors import UnsupportedConfig
from ....mappings.hf.fields import Value
from ....version import __version__
from .architectures import Decoder
from .attention import FLAVORS, Attention, BothWays, Heads, cache_names
from .blocks import Parts, embedding, soft_cap
from .builder import INT64, Graph, Weight
from .pooling import pool
from .rope import Frequencies, frequencies


def build(
    decoder: Decoder,
    config: Mapping[str, Value],
    weights: Mapping[str, Weight],
    flavor: str,
    properties: Mapping[str, str],
) -> bytes:
    """The model.onnx of a model config whose weights lie beside it, by their Hugging Face names.

    ``flavor``: "std" or "genai", see :mod:`nemoconv.converters.onnx.graph.attention`. ``properties`` go into
    ``metadata_props``.

    Raises UnsupportedConfig for what has no graph, CorruptCheckpoint unless every weight is used.
    """
    if config.get("mtp_num_layers"):
        raise UnsupportedConfig(
            f"{config['mtp_num_layers']} layers that predict further tokens have no ONNX graph",
            hint='to leave them out, pass "--allow-ignored num_nextn_predict_layers"',
        )
    graph = Graph(weights)
    ids = graph.input("input_ids", INT64, ["batch_size", "sequence_length"])
    attention = FLAVORS[flavor](graph) if decoder.generates else BothWays(graph)
    if decoder.generates:
        _declare_cache(graph, config, decoder.projections.heads(config))
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


def _declare_cache(graph: Graph, config: Mapping[str, Value], heads: Heads) -> None:
    def shape(length: str) -> list[int | str]:
        return ["batch_size", heads.groups, length, heads.head_dim]

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
            mlp = decoder.mlp_of(self.config, number)
            computed = mlp.build(parts, parts.norm(x, at + decoder.mlp_norm), at, self.config)
            if decoder.mlp_output_norm:
                computed = parts.norm(computed, at + decoder.mlp_output_norm)
        return graph.op("Add", x, computed)

    def _attend(self, number: int, at: str, x: str) -> str:
        graph, parts, decoder = self.parts.graph, self.parts, self.decoder
        windowed = decoder.has_window(self.config, number)
        turned = self._frequencies(number, windowed=windowed)
        heads = self._heads(windowed=windowed, turned=turned is not None)
        query, key, value = decoder.projections.build(parts, x, at, self.config)
        if decoder.heads_norms and graph.has(at + decoder.heads_norms[0] + ".weight"):
            query, key = (
                parts.heads_norm(one, at + name, heads.head_dim)
                for one, name in zip((query, key), decoder.heads_norms, strict=True)
            )
        query, key, value = (self._by_row(one) for one in (query, key, value))
        if turned is not None:
            query, key = (
                self.attention.rotate(one, count, turned, neighbours=decoder.neighbours)
                for one, count in ((query, heads.queries), (key, heads.groups))
            )
            if self.config.get("qk_l2_norm"):
                query, key = (parts.unweighted_norm(one, heads.head_dim) for one in (query, key))
        sinks = graph.weight(at + decoder.sinks) if decoder.sinks else ""
        mixed = self.attention.attend(number, heads, query, key, value, sinks)
        return parts.linear(self._joined(mixed, heads), at + decoder.attention_output)

    def _joined(self, mixed: str, heads: Heads) -> str:
        """[tokens, features] of what attention gives: of each head what means something."""
        graph = self.parts.graph
        if heads.value_dim is None:
            return graph.op("Reshape", mixed, graph.constant([-1, heads.queries * heads.head_dim]))
        by_head = graph.op("Reshape", mixed, graph.constant([-1, heads.queries, heads.head_dim]))
        ends = (graph.constant([n]) for n in (0, heads.value_dim, 2))
        return graph.op(
            "Reshape",
            graph.op("Slice", by_head, *ends),
            graph.constant([-1, heads.queries * heads.value_dim]),
        )

    def _by_row(self, x: str, output: str = "") -> str:
        """[tokens, features] -> [batch, sequence, features]."""
        graph = self.parts.graph
        return graph.op("Reshape", x, graph.once("sizes", partial(_row_sizes, graph)), output=output)

    def _heads(self, *, windowed: bool, turned: bool) -> Heads:
        config = self.config
        chunk = config["attention_chunk_size"] if self.decoder.chunked and turned else None
        return replace(
            self.decoder.projections.heads(config),
            soft_cap=config.get("attn_logit_softcapping"),
            window=config.get("sliding_window") if windowed else None,
            chunk=chunk if chunk and chunk < config["seq_length"] else None,
        )

    def _frequencies(self, number: int, *, windowed: bool) -> Frequencies | None:
        """How a layer rotates, None for one that does not."""
        interval, skipped = self.config.get("nope_layer_interval"), self.config.get("no_rope_freq")
        still = (interval and (number + 1) % interval == 0) or (skipped and skipped[number])
        if self.decoder.positions or still:
            return None
        dimensions = self.decoder.projections.heads(self.config).turned
        local = windowed and self.decoder.local_rope
        return frequencies(self.config, local=local, dimensions=dimensions)

    def states(self, x: str) -> None:
        graph, hidden = self.parts.graph, self.config["hidden_size"]
        normed = self.parts.norm(x, self.decoder.final_norm)
        if self.decoder.score:
            pooled = pool(graph, self._by_row(normed), self.attention.mask, self.config["pool_type"])
            score = self.parts.linear(pooled, self.decoder.score)
            graph.op("Div", score, graph.scalar(self.config["temperature"]), output="logits")
            graph.output("logits", graph.compute, ["batch_size", 1])
            return
        self._by_row(normed, output="last_hidden_state")
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
