"""Canary's graphs: the encoder, and a Transformer decoder with a cache, each as two programs cut them.

onnx-asr hands over several tokens of several rows and keeps one cache; sherpa-onnx hands over one token of
one row, with its place, and keeps a list of caches. What a cache holds is the graph's own affair: here the
keys and values of each layer, [batch, tokens, hidden].

Sources: onnx_asr/models/nemo.py of onnx-asr; offline-canary-model.cc, offline-recognizer-canary-impl.h of
sherpa-onnx; transformers/models/canary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy

from ....mappings.blocks.place import LAYER
from ....mappings.hf.fields import Value
from .builder import BOOL, FLOAT32, INT32, INT64, Graph
from .fastconformer import FRAMES, Encoded, encode, encode_features
from .mlp import Plain
from .modules import Modules, by_row, embedding

_EPSILON: Final = 1e-5  # of torch's LayerNorm
_AT: Final = "model.decoder."
_ENCODER: Final = "model.encoder."
_MLP: Final = Plain("mlp.fc1", "mlp.fc2")


def encoder(graph: Graph, config: Mapping[str, Value]) -> None:
    """For onnx-asr: ``encoder_embeddings`` [batch, steps, hidden], ``encoder_mask`` [batch, steps]."""
    found = encode(graph, config, _ENCODER)
    graph.result("encoder_embeddings", found.states, ["batch_size", "steps", config["d_model"]])
    graph.op("Where", found.real, graph.constant(1), graph.constant(0), output="encoder_mask")
    graph.output("encoder_mask", INT64, ["batch_size", "steps"])


def sherpa_encoder(graph: Graph, config: Mapping[str, Value]) -> None:
    """For sherpa-onnx: ``x`` [batch, frames, mels] -> ``enc_states``, ``enc_len``, ``enc_mask``."""
    graph.input("x", FLOAT32, ["batch_size", FRAMES, config["feat_in"]])
    graph.input("x_len", INT64, ["batch_size"])
    found: Encoded = encode_features(graph, config, _ENCODER, graph.to_compute("x", FLOAT32), "x_len")
    graph.result("enc_states", found.states, ["batch_size", "steps", config["d_model"]])
    graph.op("Identity", found.lengths, output="enc_len")
    graph.output("enc_len", INT64, ["batch_size"])
    graph.op("Identity", found.real, output="enc_mask")
    graph.output("enc_mask", BOOL, ["batch_size", "steps"])


def decoder(graph: Graph, config: Mapping[str, Value]) -> None:
    """For onnx-asr: ``input_ids`` [batch, tokens] and ``decoder_mems``, the cache of all layers, keys and
    values alternating -> ``logits`` (log-probabilities, as NeMo's head gives them) and the longer cache."""
    count, hidden = 2 * config["num_layers"], config["hidden_size"]
    ids = graph.input("input_ids", INT64, ["batch_size", "tokens"])
    graph.input("encoder_embeddings", FLOAT32, ["batch_size", "steps", hidden])
    graph.input("encoder_mask", INT64, ["batch_size", "steps"])
    graph.input("decoder_mems", FLOAT32, [count, "batch_size", "past_tokens", hidden])
    past = graph.ops("Split", "decoder_mems", outputs=count, axis=0, num_outputs=count)
    cache = [graph.op("Squeeze", one, graph.constant([0])) for one in past]
    steps = "encoder_embeddings", graph.cast("encoder_mask", BOOL)
    logits, present = _decode(graph, config, ids, cache, *steps)
    logprobs = graph.op("LogSoftmax", graph.widened(logits), axis=-1)
    graph.result("logits", logprobs, ["batch_size", "tokens", config["vocab_size"]])
    longer = graph.op("Concat", *(graph.op("Unsqueeze", one, graph.constant([0])) for one in present), axis=0)
    graph.result("decoder_hidden_states", longer, [count, "batch_size", "all_tokens", hidden])


def sherpa_decoder(graph: Graph, config: Mapping[str, Value]) -> None:
    """For sherpa-onnx: ``decoder_input_ids`` [batch, 2], a token and its place, and a cache in several parts
    -> ``logits`` and the longer cache. The place is taken from the cache: sherpa-onnx counts anew from 1 when
    the prompt is over."""
    count, hidden = 2 * config["num_layers"], config["hidden_size"]
    both = graph.input("decoder_input_ids", INT32, ["batch_size", 2])
    cache = [
        graph.input(f"decoder_mems_list_{i}", FLOAT32, ["batch_size", "past_tokens", hidden])
        for i in range(count)
    ]
    graph.input("enc_states", FLOAT32, ["batch_size", "steps", hidden])
    graph.input("enc_mask", BOOL, ["batch_size", "steps"])
    ids = graph.op("Gather", both, graph.constant([0]), axis=1)
    logits, present = _decode(graph, config, ids, cache, "enc_states", "enc_mask")
    graph.result("logits", logits, ["batch_size", 1, config["vocab_size"]])
    for number, one in enumerate(present):
        graph.result(f"next_decoder_mem_list_{number}", one, ["batch_size", "all_tokens", hidden])


def _decode(
    graph: Graph, config: Mapping[str, Value], ids: str, cache: list[str], states: str, real: str
) -> tuple[str, list[str]]:
    """(logits [batch, tokens, vocabulary], the cache with what is new). ``states`` [batch, steps, hidden] are
    the encoder's, ``real`` [batch, steps] tells which of them are none of padding."""
    modules = Modules(graph, LAYER, _EPSILON, config["hidden_act"])
    model = _Decoder(modules, config, ids, cache[0])
    x = model.tokens()
    heard = graph.op("Unsqueeze", real, graph.constant([1, 2]))
    audio = graph.op(
        "Reshape", graph.to_compute(states, FLOAT32), graph.constant([-1, config["hidden_size"]])
    )
    present: list[str] = []
    for layer in range(config["num_layers"]):
        with graph.scope(f"layers.{layer}"):
            pair = [graph.to_compute(one, FLOAT32) for one in cache[2 * layer : 2 * layer + 2]]
            x, *longer = model.layer(f"{_AT}layers.{layer}.", x, pair, audio, heard)
            present += longer
    with graph.scope("head"):
        x = modules.norm(x, _AT + "norm")
        weight, bias = graph.weight(_AT + "embed_tokens.weight"), graph.weight("proj_out.bias")
        return model.by_row(graph.op("Gemm", x, weight, bias, transB=1)), present


@dataclass(frozen=True, slots=True)
class _Decoder:
    """``ids`` [batch, tokens] come after those in ``cache``, one part of which tells how many they are."""

    modules: Modules
    config: Mapping[str, Value]
    ids: str
    cache: str

    def tokens(self) -> str:
        """[batch * tokens, hidden]"""
        graph, modules = self.modules.graph, self.modules
        with graph.scope("embedding"):
            words = embedding(graph, _AT + "embed_tokens", self.ids)
            x = graph.op("Add", words, graph.to_compute(self._angles(), FLOAT32))
            flat = graph.op("Reshape", x, graph.constant([-1, self.config["hidden_size"]]))
            return modules.norm(flat, _AT + "embedding_layernorm")

    def _angles(self) -> str:
        """[tokens, hidden] of the tokens' places: all sines, then all cosines, over sqrt(hidden)."""
        graph, width = self.modules.graph, self.config["hidden_size"]
        rates = numpy.exp(-math.log(10_000) * 2 / width * numpy.arange(width // 2)).astype(numpy.float32)
        places = graph.op("Unsqueeze", graph.cast(self._places(), FLOAT32), graph.constant([1]))
        angles = graph.op("Mul", places, graph.constant(rates, FLOAT32))
        both = graph.op("Concat", graph.op("Sin", angles), graph.op("Cos", angles), axis=1)
        return graph.op("Div", both, graph.constant(width**0.5, FLOAT32))

    def _places(self) -> str:
        """[tokens]"""
        graph = self.modules.graph

        def make() -> str:
            first, count = (
                graph.op("Gather", graph.op("Shape", of), graph.constant(1)) for of in (self.cache, self.ids)
            )
            return graph.op("Range", first, graph.op("Add", first, count), graph.constant(1))

        return graph.once("places", make)

    def _causal(self) -> str:
        """[tokens, all tokens]: whether a token is not after another."""
        graph = self.modules.graph

        def make() -> str:
            places, one = self._places(), graph.constant(1)
            last = graph.op("Gather", places, graph.constant(-1))
            keys = graph.op("Range", graph.constant(0), graph.op("Add", last, one), one)
            return graph.op("LessOrEqual", keys, graph.op("Unsqueeze", places, graph.constant([1])))

        return graph.once("causal", make)

    def by_row(self, x: str) -> str:
        """[batch * tokens, features] -> [batch, tokens, features]."""
        return by_row(self.modules.graph, x, self.ids, "rows")

    def layer(self, at: str, x: str, cache: list[str], audio: str, heard: str) -> list[str]:
        """[batch * tokens, hidden], and keys and values of all tokens so far."""
        graph, modules = self.modules.graph, self.modules
        with graph.scope("attention"):
            query, *new = self._projected(at + "self_attn.", *[modules.norm(x, at + "input_layernorm")] * 2)
            present = [
                graph.op("Concat", past, self.by_row(one), axis=1)
                for past, one in zip(cache, new, strict=True)
            ]
            x = graph.op("Add", x, self._attend(at + "self_attn.", query, present, self._causal()))
        with graph.scope("audio"):
            normed = modules.norm(x, at + "post_attention_layernorm")
            query, *flat = self._projected(at + "encoder_attn.", normed, audio)
            sizes = graph.once("audio", lambda: self._audio_sizes(heard))
            pair = [graph.op("Reshape", one, sizes) for one in flat]
            x = graph.op("Add", x, self._attend(at + "encoder_attn.", query, pair, heard))
        with graph.scope("mlp"):
            computed = _MLP.build(modules, modules.norm(x, at + "final_layernorm"), at, self.config)
            return [graph.op("Add", x, computed), *present]

    def _audio_sizes(self, heard: str) -> str:
        """[batch, steps, -1]"""
        graph = self.modules.graph
        sizes = graph.op("Gather", graph.op("Shape", heard), graph.constant([0, 3]))
        return graph.op("Concat", sizes, graph.constant([-1]), axis=0)

    def _projected(self, at: str, x: str, source: str) -> list[str]:
        names = ((x, "q_proj"), (source, "k_proj"), (source, "v_proj"))
        return [self.modules.linear(of, at + name) for of, name in names]

    def _attend(self, at: str, query: str, pair: list[str], seen: str) -> str:
        """``seen`` tells which of the keys a token sees."""
        graph, heads = self.modules.graph, self.config["num_attention_heads"]
        width = self.config["hidden_size"]
        split = graph.constant([0, 0, heads, width // heads])
        queries, keys, values = (
            graph.op("Transpose", graph.op("Reshape", one, split), perm=perm)
            for one, perm in zip(
                (self.by_row(query), *pair), ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True
            )
        )
        scale = graph.scalar((width // heads) ** -0.5)
        scores = graph.op("Mul", graph.op("MatMul", queries, keys), scale)
        lowest = graph.scalar(float(numpy.finfo(graph.compute.numpy()).min))
        visible = graph.op("Where", seen, scores, lowest)
        shares = graph.to_compute(graph.op("Softmax", graph.widened(visible), axis=-1), FLOAT32)
        joined = graph.op("Transpose", graph.op("MatMul", shares, values), perm=[0, 2, 1, 3])
        flat = graph.op("Reshape", joined, graph.constant([-1, width]))
        return self.modules.linear(flat, at + "o_proj")
