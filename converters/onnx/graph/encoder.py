"""An encoder's graph: every token sees all others, the norms come after attention and MLP (BERT).

Inputs and outputs have transformers' names, as optimum writes them: ``input_ids``, ``attention_mask``,
``token_type_ids`` -> ``last_hidden_state`` and ``pooler_output``, or what the model's heads give.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ....mappings.blocks.names import Names
from ....mappings.blocks.place import LAYER
from ....mappings.hf.fields import Value
from ....version import __version__
from .architectures import Encoder
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
    model = _Model(encoder.names, config, parts, attention)
    x = model.tokens()
    for layer in range(config["num_layers"]):
        with graph.scope(f"layers.{layer}"):
            x = model.layer(layer, x)
    model.heads(x)
    return graph.model(("nemoconv", __version__), properties)


@dataclass(frozen=True, slots=True)
class _Model:
    names: Names
    config: Mapping[str, Value]
    parts: Parts
    attention: BothWays

    def tokens(self) -> str:
        """[tokens, hidden] of token ids, their kinds and their places."""
        graph, names = self.parts.graph, self.names
        with graph.scope("embedding"):
            words = embedding(graph, names.embedding, "input_ids")
            x = graph.op("Add", words, embedding(graph, names.token_types, "token_type_ids"))
            x = graph.op("Add", x, embedding(graph, names.positions, self.attention.positions))
            x = graph.op("Reshape", x, graph.constant([-1, self.config["hidden_size"]]))
            return self.parts.norm(x, names.embedding_norm)

    def layer(self, number: int, x: str) -> str:
        graph, parts, count = self.parts.graph, self.parts, self.config["num_attention_heads"]
        names, at = self.names, self.names.layer.format(layer=number)
        width = self.config["kv_channels"]
        heads = Heads(count, count, width, float(width) ** -0.5)
        with graph.scope("attention"):
            projected = [
                self._by_row(parts.linear(x, at + name)) for name in (names.query, names.key, names.value)
            ]
            mixed = self.attention.attend(number, heads, *projected)
            flat = graph.op("Reshape", mixed, graph.constant([-1, self.config["hidden_size"]]))
            attended = parts.linear(flat, at + names.attention_output)
            x = parts.norm(graph.op("Add", attended, x), at + names.attention_output_norm)
        with graph.scope("mlp"):
            computed = Plain(names.up, names.down).build(parts, x, at, self.config)
            return parts.norm(graph.op("Add", computed, x), at + names.mlp_output_norm)

    def _by_row(self, x: str, output: str = "") -> str:
        """[tokens, features] -> [batch, sequence, features]."""
        graph = self.parts.graph

        def sizes() -> str:
            return graph.op("Concat", graph.op("Shape", "input_ids"), graph.constant([-1]), axis=0)

        return graph.op("Reshape", x, graph.once("sizes", sizes), output=output)

    def heads(self, x: str) -> None:
        """Outputs of the class that the weights belong to, as transformers calls them."""
        graph, config = self.parts.graph, self.config
        predicts, asks = config["add_lm_head"], config["bert_binary_head"]
        states = self._by_row(x, output="" if predicts else "last_hidden_state")
        if not predicts:
            graph.output("last_hidden_state", graph.compute, [*BY_TOKEN, config["hidden_size"]])
        if config["add_pooler"]:
            self._pool(states, asks)
        if predicts:
            output = "prediction_logits" if asks else "logits"
            with graph.scope("predictions"):
                self._predict(x, output)
            graph.output(output, graph.compute, [*BY_TOKEN, config["vocab_size"]])

    def _pool(self, states: str, asks: bool) -> None:
        """What the first token says of a row; ``asks``: whether the next sentence follows."""
        graph, output = self.parts.graph, "seq_relationship_logits" if asks else "pooler_output"
        with graph.scope("pooler"):
            first = graph.op("Gather", states, graph.constant(0), axis=1)
            dense = self.parts.linear(first, self.names.pooler)
            pooled = graph.op("Tanh", dense, output="" if asks else output)
        if asks:
            weight, bias = (graph.weight(f"{self.names.next_sentence}.{kind}") for kind in ("weight", "bias"))
            graph.op("Gemm", pooled, weight, bias, transB=1, output=output)
        graph.output(output, graph.compute, ["batch_size", 2 if asks else self.config["hidden_size"]])

    def _predict(self, x: str, output: str) -> None:
        parts, names = self.parts, self.names
        x = parts.activate(parts.linear(x, names.transform))
        x = parts.norm(x, names.transform_norm)
        words = parts.graph.weight(names.embedding + ".weight")
        bias = parts.graph.weight(names.predictions_bias)
        self._by_row(parts.graph.op("Gemm", x, words, bias, transB=1), output=output)
