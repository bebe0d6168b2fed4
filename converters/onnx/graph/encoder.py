"""An encoder's graph: every token sees all others, the norms come after attention and MLP (BERT).

Inputs and outputs have transformers' names, as optimum writes them: ``input_ids``, ``attention_mask``,
``token_type_ids`` -> ``last_hidden_state`` and ``pooler_output``, or what the model's heads give.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ....mappings.hf.fields import Value
from ....version import __version__
from .architectures import LAYER, Encoder
from .attention import BothWays, Heads
from .blocks import Parts, Plain, embedding
from .builder import INT64, Graph, Weight

BY_TOKEN = ("batch_size", "sequence_length")


def build(
    encoder: Encoder,
    config: Mapping[str, Value],
    weights: Mapping[str, Weight],
    properties: Mapping[str, str],
) -> bytes:
    """The model.onnx of a model config whose weights lie beside it, by their Hugging Face names.

    Raises CorruptCheckpoint unless every weight is used.
    """
    graph = Graph(weights)
    graph.input("input_ids", INT64, BY_TOKEN)
    attention = BothWays(graph)
    graph.input("token_type_ids", INT64, BY_TOKEN)
    parts = Parts(graph, LAYER, config["layernorm_epsilon"], config["hidden_act"])
    model = _Model(encoder, config, parts, attention)
    x = model.tokens()
    for layer in range(config["num_layers"]):
        with graph.scope(f"layers.{layer}"):
            x = model.layer(layer, x)
    model.heads(x)
    return graph.model(("nemoconv", __version__), properties)


@dataclass(frozen=True, slots=True)
class _Model:
    encoder: Encoder
    config: Mapping[str, Value]
    parts: Parts
    attention: BothWays

    def tokens(self) -> str:
        """[tokens, hidden] of token ids, their kinds and their places."""
        graph, at = self.parts.graph, self.encoder.prefix + "embeddings."
        with graph.scope("embedding"):
            words = embedding(graph, at + "word_embeddings", "input_ids")
            x = graph.op("Add", words, embedding(graph, at + "token_type_embeddings", "token_type_ids"))
            x = graph.op("Add", x, embedding(graph, at + "position_embeddings", self.attention.positions))
            x = graph.op("Reshape", x, graph.constant([-1, self.config["hidden_size"]]))
            return self.parts.norm(x, at + "LayerNorm")

    def layer(self, number: int, x: str) -> str:
        graph, parts, count = self.parts.graph, self.parts, self.config["num_attention_heads"]
        at = f"{self.encoder.prefix}encoder.layer.{number}."
        width = self.config["kv_channels"]
        heads = Heads(count, count, width, float(width) ** -0.5)
        with graph.scope("attention"):
            projected = [
                self._by_row(parts.linear(x, f"{at}attention.self.{name}"))
                for name in ("query", "key", "value")
            ]
            mixed = self.attention.attend(number, heads, *projected)
            flat = graph.op("Reshape", mixed, graph.constant([-1, self.config["hidden_size"]]))
            attended = parts.linear(flat, at + "attention.output.dense")
            x = parts.norm(graph.op("Add", attended, x), at + "attention.output.LayerNorm")
        with graph.scope("mlp"):
            computed = Plain("intermediate.dense", "output.dense").build(parts, x, at, self.config)
            return parts.norm(graph.op("Add", computed, x), at + "output.LayerNorm")

    def _by_row(self, x: str, output: str = "") -> str:
        """[tokens, features] -> [batch, sequence, features]."""
        graph = self.parts.graph

        def sizes() -> str:
            return graph.op("Concat", graph.op("Shape", "input_ids"), graph.constant([-1]), axis=0)

        return graph.op("Reshape", x, graph.once("sizes", sizes), output=output)

    def heads(self, x: str) -> None:
        """Outputs of the class that the weights belong to."""
        graph, encoder, hidden = self.parts.graph, self.encoder, self.config["hidden_size"]
        states = self._by_row(x, output="" if encoder.predictions else "last_hidden_state")
        if not encoder.predictions:
            graph.output("last_hidden_state", graph.compute, [*BY_TOKEN, hidden])
        if encoder.pooled:
            with graph.scope("pooler"):
                first = graph.op("Gather", states, graph.constant(0), axis=1)
                dense = self.parts.linear(first, encoder.prefix + "pooler.dense")
                pooled = graph.op("Tanh", dense, output="" if encoder.next_sentence else encoder.pooled)
            if encoder.next_sentence:
                weight, bias = (graph.weight(f"cls.seq_relationship.{kind}") for kind in ("weight", "bias"))
                graph.op("Gemm", pooled, weight, bias, transB=1, output=encoder.pooled)
            graph.output(
                encoder.pooled, graph.compute, ["batch_size", 2 if encoder.next_sentence else hidden]
            )
        if encoder.predictions:
            with graph.scope("predictions"):
                self._predict(x, encoder.predictions)
            graph.output(encoder.predictions, graph.compute, [*BY_TOKEN, self.config["vocab_size"]])

    def _predict(self, x: str, output: str) -> None:
        parts, at = self.parts, "cls.predictions."
        x = parts.activate(parts.linear(x, at + "transform.dense"))
        x = parts.norm(x, at + "transform.LayerNorm")
        words = parts.graph.weight(self.encoder.prefix + "embeddings.word_embeddings.weight")
        logits = parts.graph.op("Gemm", x, words, parts.graph.weight(at + "bias"), transB=1)
        self._by_row(logits, output=output)
