"""A transducer's graphs besides its encoder: prediction network, joint network, and both in one.

Names are those of NeMo's own exporter. Tokens come as 32-bit numbers, states of the LSTM as [layers, batch,
width]: the hidden ones first, then the cells.

Sources: nemo/collections/asr/modules/rnnt.py (RNNTDecoder, RNNTJoint, RNNTDecoderJoint);
the operator LSTM of ONNX's Operators.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ....mappings.blocks.place import LAYER
from ....mappings.hf.fields import Value
from .blocks import Parts, embedding
from .builder import FLOAT32, INT32, Graph

#: torch stacks the gates input, forget, cell, output; ONNX wants input, output, forget, cell
_GATES: Final = (0, 3, 1, 2)
_STATES: Final = ("states_1", "states_2")
#: what a gate is computed from: the token, and the state before it
_SIDES: Final = ("ih", "hh")


def decoder_joint(graph: Graph, config: Mapping[str, Value]) -> None:
    """``encoder_outputs``, ``targets`` and states -> ``outputs`` [batch, steps, tokens, vocabulary], the
    logits of tokens (the blank is the last one) and, behind them, of durations."""
    encoded = _encoder_outputs(graph, config)
    predicted, *states = _predict(graph, config)
    _join(graph, config, encoded, predicted)
    _give_states(graph, config, states)


def decoder(graph: Graph, config: Mapping[str, Value]) -> None:
    """The prediction network by itself: ``targets`` and states -> ``outputs`` [batch, width, tokens]."""
    predicted, *states = _predict(graph, config)
    outputs = graph.op("Transpose", predicted, perm=[0, 2, 1])
    graph.result("outputs", outputs, ["batch_size", config["pred_hidden"], "tokens"])
    _give_states(graph, config, states)


def joiner(graph: Graph, config: Mapping[str, Value]) -> None:
    """The joint network by itself: ``encoder_outputs`` and ``decoder_outputs``, both with the features
    before the steps -> ``outputs`` as those of :func:`decoder_joint`."""
    encoded = _encoder_outputs(graph, config)
    graph.input("decoder_outputs", FLOAT32, ["batch_size", config["pred_hidden"], "tokens"])
    predicted = graph.op("Transpose", graph.to_compute("decoder_outputs", FLOAT32), perm=[0, 2, 1])
    _join(graph, config, encoded, predicted)


def _encoder_outputs(graph: Graph, config: Mapping[str, Value]) -> str:
    """[batch, steps, features]"""
    graph.input("encoder_outputs", FLOAT32, ["batch_size", config["d_model"], "steps"])
    return graph.op("Transpose", graph.to_compute("encoder_outputs", FLOAT32), perm=[0, 2, 1])


def _predict(graph: Graph, config: Mapping[str, Value]) -> list[str]:
    """[batch, tokens, width] of what the LSTM makes of the tokens, and its states after the last one."""
    layers, width = config["pred_rnn_layers"], config["pred_hidden"]
    targets = graph.input("targets", INT32, ["batch_size", "tokens"])
    graph.input("target_length", INT32, ["batch_size"])
    before = [_layers_of(graph, "input_" + name, layers, width) for name in _STATES]
    with graph.scope("prediction"):
        x = graph.op("Transpose", embedding(graph, "decoder.embedding", targets), perm=[1, 0, 2])
        after: list[list[str]] = []
        for number, (hidden, cell) in enumerate(zip(*before, strict=True)):
            x, *found = _lstm(graph, x, f"decoder.lstm.{{}}_l{number}", hidden, cell, width)
            after.append(found)
        states = [graph.op("Concat", *layer, axis=0) for layer in zip(*after, strict=True)]
        return [graph.op("Transpose", x, perm=[1, 0, 2]), *states]


def _give_states(graph: Graph, config: Mapping[str, Value], states: list[str]) -> None:
    """The outputs behind the first one, in the order in which sherpa-onnx counts them."""
    graph.op("Identity", "target_length", output="prednet_lengths")
    graph.output("prednet_lengths", INT32, ["batch_size"])
    for name, state in zip(_STATES, states, strict=True):
        graph.result(
            "output_" + name, state, [config["pred_rnn_layers"], "batch_size", config["pred_hidden"]]
        )


def _layers_of(graph: Graph, name: str, layers: int, width: int) -> list[str]:
    """An input [layers, batch, width], one [1, batch, width] for each layer."""
    graph.input(name, FLOAT32, [layers, "batch_size", width])
    states = graph.to_compute(name, FLOAT32)
    return graph.ops("Split", states, outputs=layers, axis=0, num_outputs=layers) if layers > 1 else [states]


def _lstm(graph: Graph, x: str, name: str, hidden: str, cell: str, width: int) -> list[str]:
    """[tokens, batch, width], and the states after the last token, [1, batch, width] each."""
    matrices = [_gates(graph, name.format(f"weight_{side}"), width, [1, 4 * width, -1]) for side in _SIDES]
    biases = [_gates(graph, name.format(f"bias_{side}"), width, [1, -1]) for side in _SIDES]
    bias = graph.op("Concat", *biases, axis=1)
    y, *states = graph.ops("LSTM", x, *matrices, bias, "", hidden, cell, outputs=3, hidden_size=width)
    return [graph.op("Squeeze", y, graph.constant([1])), *states]


def _gates(graph: Graph, name: str, width: int, shape: list[int]) -> str:
    """A weight whose rows are four gates, in ONNX's order and as ``shape``: moved, not changed."""
    by_gate = graph.op("Reshape", graph.weight(name), graph.constant([4, width, -1]))
    ordered = graph.op("Gather", by_gate, graph.constant(_GATES), axis=0)
    return graph.op("Reshape", ordered, graph.constant(shape))


def _join(graph: Graph, config: Mapping[str, Value], encoded: str, predicted: str) -> None:
    """Every step of the audio with every token before: ``outputs``."""
    parts = Parts(graph, LAYER, 0.0, config["joint_activation"])
    width, outputs = config["pred_hidden"], config["vocab_size"] + len(config.get("durations", ()))
    with graph.scope("joint"):
        steps = _project(parts, encoded, "encoder_projector", config["d_model"])
        tokens = _project(parts, predicted, "decoder.decoder_projector", width)
        grid = graph.op(
            "Add",
            graph.op("Unsqueeze", steps, graph.constant([2])),
            graph.op("Unsqueeze", tokens, graph.constant([1])),
        )
        logits = _project(parts, parts.activate(grid), "joint.head", width)
    graph.result("outputs", logits, ["batch_size", "steps", "tokens", outputs])


def _project(parts: Parts, x: str, name: str, width: int) -> str:
    """A linear layer over the last of several axes, which is ``width`` wide."""
    graph = parts.graph
    flat = parts.linear(graph.op("Reshape", x, graph.constant([-1, width])), name)
    kept = graph.op("Shape", x, end=-1)
    return graph.op("Reshape", flat, graph.op("Concat", kept, graph.constant([-1]), axis=0))
