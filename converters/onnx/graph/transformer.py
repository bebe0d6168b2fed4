"""The graph of a text model: the blocks of an architecture put together for a model config.

Inputs and outputs of a decoder have the names that optimum, onnxruntime-genai and transformers.js use:
``input_ids``, ``attention_mask`` (of past and new tokens), ``position_ids``,
``past_key_values.{i}.key|value`` -> ``logits``, ``present.{i}.key|value``. Batch and lengths are free. One
that does not generate, but attends both ways, has ``input_ids`` and ``attention_mask`` ->
``last_hidden_state``, or ``logits`` of whole rows, pooled.

In an encoder (BERT) every token sees all others, and the norms come after attention and MLP. Its inputs and
outputs have transformers' names, as optimum writes them: ``input_ids``, ``attention_mask``,
``token_type_ids`` -> ``last_hidden_state`` and ``pooler_output``, or what the model's heads give.

Source of pooling: ``pool`` in nemo/collections/llm/gpt/model/hf_llama_embedding.py, which released rerankers
have, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from ....errors import UnsupportedConfig
from ....mappings.blocks.names import Names
from ....mappings.blocks.place import LAYER
from ....mappings.hf.fields import Value
from ....version import __version__
from .architectures import Decoder, Encoder
from .attention import FLAVORS, AttentionFlavor, AttentionSpec, BidirectionalAttention, cache_names
from .builder import BOOL, INT64, Graph, Weight
from .mlp import Plain
from .modules import Modules, by_row, embedding, soft_cap
from .rope import Frequencies, frequencies

BY_TOKEN: Final = ("batch_size", "sequence_length")


def build(
    kind: Decoder | Encoder,
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
    graph.input("input_ids", INT64, BY_TOKEN)
    model = (
        _decoder(graph, kind, config, flavor) if isinstance(kind, Decoder) else _encoder(graph, kind, config)
    )
    x = model.tokens()
    for layer in range(config["num_layers"]):
        with graph.scope(f"layers.{layer}"):
            x = model.layer(layer, x)
    model.outputs(x)
    return graph.model(("nemoconv", __version__), properties)


def _decoder(graph: Graph, decoder: Decoder, config: Mapping[str, Value], flavor: str) -> _DecoderModel:
    blocks = decoder.blocks
    attention = FLAVORS[flavor](graph) if blocks.generates else BidirectionalAttention(graph)
    if blocks.generates:
        _declare_cache(graph, config, decoder.projections.heads(config))
    activation = blocks.activation or config["hidden_act"]
    modules = Modules(graph, blocks.norm, config["layernorm_epsilon"], activation, blocks.transposed)
    return _DecoderModel(modules, config, attention, decoder)


def _encoder(graph: Graph, encoder: Encoder, config: Mapping[str, Value]) -> _EncoderModel:
    attention = BidirectionalAttention(graph)
    graph.input("token_type_ids", INT64, BY_TOKEN)
    modules = Modules(graph, LAYER, config["layernorm_epsilon"], config["hidden_act"])
    return _EncoderModel(modules, config, attention, encoder.names)


def _declare_cache(graph: Graph, config: Mapping[str, Value], heads: AttentionSpec) -> None:
    def shape(length: str) -> list[int | str]:
        return ["batch_size", heads.groups, length, heads.head_dim]

    graph.output("logits", graph.compute, [*BY_TOKEN, config["vocab_size"]])
    for layer in range(config["num_layers"]):
        past_key, past_value, present_key, present_value = cache_names(layer)
        for name in (past_key, past_value):
            graph.input(name, graph.compute, shape("past_sequence_length"))
        for name in (present_key, present_value):
            graph.output(name, graph.compute, shape("total_sequence_length"))


@dataclass(frozen=True, slots=True)
class _TextModel:
    modules: Modules
    config: Mapping[str, Value]
    attention: AttentionFlavor

    def by_row(self, x: str, output: str = "") -> str:
        """[tokens, features] -> [batch, sequence, features]."""
        return by_row(self.modules.graph, x, "input_ids", "sizes", output=output)

    def flat(self, x: str) -> str:
        """[..., hidden] -> [tokens, hidden]."""
        graph = self.modules.graph
        return graph.op("Reshape", x, graph.constant([-1, self.config["hidden_size"]]))


@dataclass(frozen=True, slots=True)
class _DecoderModel(_TextModel):
    decoder: Decoder

    def tokens(self) -> str:
        """[tokens, hidden] of the token ids."""
        graph, names = self.modules.graph, self.decoder.names
        with graph.scope("embedding"):
            x = embedding(graph, names.embedding, "input_ids")
            if names.positions:
                x = graph.op("Add", x, embedding(graph, names.positions, self.attention.positions))
            x = self.flat(x)
            if self.decoder.blocks.scaled_embedding:
                x = graph.op("Mul", x, graph.scalar(self.config["hidden_size"] ** 0.5))
        return x

    def layer(self, number: int, x: str) -> str:
        graph, modules, names = self.modules.graph, self.modules, self.decoder.names
        at = names.layer.format(layer=number)
        with graph.scope("attention"):
            attended = self._attend(number, at, modules.norm(x, at + names.input_norm))
            if names.attention_output_norm:
                attended = modules.norm(attended, at + names.attention_output_norm)
        x = graph.op("Add", x, attended)
        with graph.scope("mlp"):
            mlp = self.decoder.mlp_of(self.config, number)
            computed = mlp.build(modules, modules.norm(x, at + names.mlp_norm), at, self.config)
            if names.mlp_output_norm:
                computed = modules.norm(computed, at + names.mlp_output_norm)
        return graph.op("Add", x, computed)

    def _attend(self, number: int, at: str, x: str) -> str:
        graph, modules, decoder, names = self.modules.graph, self.modules, self.decoder, self.decoder.names
        windowed = decoder.has_window(self.config, number)
        turned = self._frequencies(number, windowed=windowed)
        heads = self._heads(windowed=windowed, turned=turned is not None)
        query, key, value = decoder.projections.build(modules, x, at, self.config)
        if names.query_norm and graph.has(at + names.query_norm + ".weight"):
            query, key = (
                modules.heads_norm(one, at + name, heads.head_dim)
                for one, name in ((query, names.query_norm), (key, names.key_norm))
            )
        query, key, value = (self.by_row(one) for one in (query, key, value))
        if turned is not None:
            query, key = (
                self.attention.rotate(one, count, turned, neighbours=decoder.blocks.neighbours)
                for one, count in ((query, heads.queries), (key, heads.groups))
            )
            if self.config.get("qk_l2_norm"):
                query, key = (modules.unweighted_norm(one, heads.head_dim) for one in (query, key))
        sinks = graph.weight(at + names.sinks) if names.sinks else ""
        mixed = self.attention.attend(number, heads, query, key, value, sinks)
        return modules.linear(self._joined(mixed, heads), at + names.attention_output)

    def _joined(self, mixed: str, heads: AttentionSpec) -> str:
        """[tokens, features] of what attention gives: of each head what means something."""
        graph = self.modules.graph
        if heads.value_dim is None:
            return graph.op("Reshape", mixed, graph.constant([-1, heads.queries * heads.head_dim]))
        by_head = graph.op("Reshape", mixed, graph.constant([-1, heads.queries, heads.head_dim]))
        ends = (graph.constant([n]) for n in (0, heads.value_dim, 2))
        return graph.op(
            "Reshape",
            graph.op("Slice", by_head, *ends),
            graph.constant([-1, heads.queries * heads.value_dim]),
        )

    def _heads(self, *, windowed: bool, turned: bool) -> AttentionSpec:
        config = self.config
        chunk = config["attention_chunk_size"] if self.decoder.blocks.chunked and turned else None
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
        if self.decoder.names.positions or still:
            return None
        dimensions = self.decoder.projections.heads(self.config).turned
        local = windowed and self.decoder.blocks.local_rope
        return frequencies(self.config, local=local, dimensions=dimensions)

    def outputs(self, x: str) -> None:
        """Logits of a decoder that generates; else a score of each row, or the states."""
        graph, names = self.modules.graph, self.decoder.names
        with graph.scope("head"):
            normed = self.modules.norm(x, names.final_norm)
            if self.decoder.generates:
                self._logits(normed)
            elif names.score:
                pooled = _pool(graph, self.by_row(normed), self.attention.mask, self.config["pool_type"])
                score = self.modules.linear(pooled, names.score)
                graph.op("Div", score, graph.scalar(self.config["temperature"]), output="logits")
                graph.output("logits", graph.compute, ["batch_size", 1])
            else:
                self.by_row(normed, output="last_hidden_state")
                graph.output("last_hidden_state", graph.compute, [*BY_TOKEN, self.config["hidden_size"]])

    def _logits(self, normed: str) -> None:
        graph, names = self.modules.graph, self.decoder.names
        tied = self.config["share_embeddings_and_output_weights"]
        weight = graph.weight((names.embedding if tied else names.head or "lm_head") + ".weight")
        found = graph.op("Gemm", normed, weight, transB=1)
        if self.config.get("final_logit_softcapping"):
            found = soft_cap(graph, found, self.config["final_logit_softcapping"])
        self.by_row(found, output="logits")


@dataclass(frozen=True, slots=True)
class _EncoderModel(_TextModel):
    names: Names

    def tokens(self) -> str:
        """[tokens, hidden] of token ids, their kinds and their places."""
        graph, names = self.modules.graph, self.names
        with graph.scope("embedding"):
            words = embedding(graph, names.embedding, "input_ids")
            x = graph.op("Add", words, embedding(graph, names.token_types, "token_type_ids"))
            x = graph.op("Add", x, embedding(graph, names.positions, self.attention.positions))
            return self.modules.norm(self.flat(x), names.embedding_norm)

    def layer(self, number: int, x: str) -> str:
        graph, modules, count = self.modules.graph, self.modules, self.config["num_attention_heads"]
        names, at = self.names, self.names.layer.format(layer=number)
        width = self.config["kv_channels"]
        heads = AttentionSpec(count, count, width, float(width) ** -0.5)
        with graph.scope("attention"):
            projected = [
                self.by_row(modules.linear(x, at + name)) for name in (names.query, names.key, names.value)
            ]
            mixed = self.attention.attend(number, heads, *projected)
            attended = modules.linear(self.flat(mixed), at + names.attention_output)
            x = modules.norm(graph.op("Add", attended, x), at + names.attention_output_norm)
        with graph.scope("mlp"):
            computed = Plain(names.up, names.down).build(modules, x, at, self.config)
            return modules.norm(graph.op("Add", computed, x), at + names.mlp_output_norm)

    def outputs(self, x: str) -> None:
        """Outputs of the class that the weights belong to, as transformers calls them."""
        graph, config = self.modules.graph, self.config
        predicts, asks = config["add_lm_head"], config["bert_binary_head"]
        states = self.by_row(x, output="" if predicts else "last_hidden_state")
        if not predicts:
            graph.output("last_hidden_state", graph.compute, [*BY_TOKEN, config["hidden_size"]])
        if config["add_pooler"]:
            self._first_token(states, asks)
        if predicts:
            output = "prediction_logits" if asks else "logits"
            with graph.scope("predictions"):
                self._predict(x, output)
            graph.output(output, graph.compute, [*BY_TOKEN, config["vocab_size"]])

    def _first_token(self, states: str, asks: bool) -> None:
        """What the first token says of a row; ``asks``: whether the next sentence follows."""
        graph, output = self.modules.graph, "seq_relationship_logits" if asks else "pooler_output"
        with graph.scope("pooler"):
            first = graph.op("Gather", states, graph.constant(0), axis=1)
            dense = self.modules.linear(first, self.names.pooler)
            pooled = graph.op("Tanh", dense, output="" if asks else output)
        if asks:
            weight, bias = (graph.weight(f"{self.names.next_sentence}.{kind}") for kind in ("weight", "bias"))
            graph.op("Gemm", pooled, weight, bias, transB=1, output=output)
        graph.output(output, graph.compute, ["batch_size", 2 if asks else self.config["hidden_size"]])

    def _predict(self, x: str, output: str) -> None:
        modules, names = self.modules, self.names
        x = modules.activate(modules.linear(x, names.transform))
        x = modules.norm(x, names.transform_norm)
        words = modules.graph.weight(names.embedding + ".weight")
        bias = modules.graph.weight(names.predictions_bias)
        self.by_row(modules.graph.op("Gemm", x, words, bias, transB=1), output=output)


def _pool(graph: Graph, states: str, mask: str, kind: str) -> str:
    """[batch, hidden] of ``states`` [batch, sequence, hidden], of the tokens that ``mask`` [batch, sequence]
    calls real. Raises UnsupportedConfig for a kind that has no graph."""
    if kind not in _KINDS:
        raise UnsupportedConfig(f"config.json: pooling={kind!r} has no ONNX graph, only {', '.join(_KINDS)}")
    with graph.scope("pooling"):
        real = graph.op("Unsqueeze", graph.cast(mask, BOOL), graph.constant([2]))
        return _KINDS[kind](graph, graph.op("Where", real, states, graph.scalar(0.0)), mask)


def _sum(graph: Graph, states: str, _mask: str) -> str:
    return graph.op("ReduceSum", states, graph.constant([1]), keepdims=0)


def _average(graph: Graph, states: str, mask: str) -> str:
    count = graph.op("ReduceSum", mask, graph.constant([1]), keepdims=1)
    return graph.op("Div", _sum(graph, states, mask), graph.cast(count, graph.compute))


def _first(graph: Graph, states: str, _mask: str) -> str:
    return graph.op("Gather", states, graph.constant(0), axis=1)


def _last(graph: Graph, states: str, mask: str) -> str:
    """The last token of all rows if it is real in all of them, else the one that the number of a row's real
    tokens points at."""
    length = graph.op("Gather", graph.op("Shape", mask), graph.constant(1))
    end = graph.op("Sub", length, graph.constant(1))
    count = graph.op("ReduceSum", mask, graph.constant([1]), keepdims=0)
    whole = graph.op("ReduceMin", graph.op("Gather", mask, end, axis=1), graph.constant([0]), keepdims=0)
    place = graph.op("Where", graph.cast(whole, BOOL), end, graph.op("Sub", count, graph.constant(1)))
    return graph.op("GatherND", states, graph.op("Unsqueeze", place, graph.constant([1])), batch_dims=1)


_KINDS: Final[Mapping[str, Callable[[Graph, str, str], str]]] = {
    "avg": _average,
    "weighted_avg": _sum,
    "cls": _first,
    "last": _last,
}
