"""Speech models as the graphs that onnx-asr and sherpa-onnx load.

A graph is small and its weights lie in the safetensors files, so each program gets the cut it expects:
onnx-asr wants prediction and joint network in one graph, sherpa-onnx wants them apart. The features of the
audio are computed outside, as with NeMo's own exporter. Inputs and outputs are float32, whatever the weights,
and have the names of NeMo's exporter. A transducer gets tokens as 32-bit numbers, and states of its LSTM as
[layers, batch, width]: the hidden ones first, then the cells.

Sources: onnx_asr/asr.py and models/nemo.py of onnx-asr; offline-transducer-nemo-model.cc and
offline-nemo-enc-dec-ctc-model.cc of sherpa-onnx; nemo/core/classes/exportable.py;
nemo/collections/asr/modules/rnnt.py (RNNTDecoder, RNNTJoint, RNNTDecoderJoint); the operator LSTM of ONNX's
Operators.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from ....errors import CorruptCheckpoint, some
from ....mappings.blocks.place import LAYER
from ....mappings.hf.fields import Value
from ....version import __version__
from . import canary
from .architectures import SpeechModel
from .builder import FLOAT32, INT32, INT64, Graph, Weight
from .fastconformer import encode
from .modules import Modules, embedding

#: the key of metadata_props that lists all graphs of a model
FILES: Final = "nemoconv.files"
#: operators that onnxruntime 1.17 has, which older builds of sherpa-onnx come with
_OPSET: Final = 20
_UNUSED: Final = ".num_batches_tracked"
#: torch stacks the gates input, forget, cell, output; ONNX wants input, output, forget, cell
_GATES: Final = (0, 3, 1, 2)
_STATES: Final = ("states_1", "states_2")
#: what a gate is computed from: the token, and the state before it
_SIDES: Final = ("ih", "hh")


@dataclass(frozen=True, slots=True)
class SpeechGraph:
    """One graph of a model: its file, how the names of its weights begin, and what adds its operations."""

    file: str
    weights: tuple[str, ...]
    add: Callable[[Graph, Mapping[str, Value]], None]

    def holds(self, name: str) -> bool:
        return name.startswith(self.weights)


def encoder(graph: Graph, config: Mapping[str, Value]) -> None:
    """The encoder of a transducer: ``outputs`` [batch, hidden, steps], ``encoded_lengths`` [batch]."""
    found = encode(graph, config, "encoder.")
    states = graph.op("Transpose", found.states, perm=[0, 2, 1])
    graph.result("outputs", states, ["batch_size", config["d_model"], "steps"])
    graph.op("Identity", found.lengths, output="encoded_lengths")
    graph.output("encoded_lengths", INT64, ["batch_size"])


def ctc(graph: Graph, config: Mapping[str, Value]) -> None:
    """Encoder and CTC head: ``logprobs`` [batch, steps, vocabulary], the blank last."""
    found = encode(graph, config, "encoder.")
    states = graph.op("Transpose", found.states, perm=[0, 2, 1])
    weight, bias = (graph.weight(f"ctc_head.{kind}") for kind in ("weight", "bias"))
    logits = graph.op("Transpose", graph.op("Conv", states, weight, bias), perm=[0, 2, 1])
    logprobs = graph.op("LogSoftmax", graph.widened(logits), axis=-1)
    graph.result("logprobs", logprobs, ["batch_size", "steps", config["vocab_size"]])


def decoder_joint(graph: Graph, config: Mapping[str, Value]) -> None:
    """``encoder_outputs``, ``targets`` and states -> ``outputs`` [batch, steps, tokens, vocabulary], the
    logits of tokens (the blank is the last one) and, behind them, of durations."""
    encoded = _encoder_outputs(graph, config)
    predicted, *states = _predict(graph, config)
    _join(graph, config, encoded, predicted)
    _give_states(graph, config, states)


def prediction_network(graph: Graph, config: Mapping[str, Value]) -> None:
    """The prediction network by itself: ``targets`` and states -> ``outputs`` [batch, width, tokens]."""
    predicted, *states = _predict(graph, config)
    outputs = graph.op("Transpose", predicted, perm=[0, 2, 1])
    graph.result("outputs", outputs, ["batch_size", config["pred_hidden"], "tokens"])
    _give_states(graph, config, states)


def joint_network(graph: Graph, config: Mapping[str, Value]) -> None:
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
    modules = Modules(graph, LAYER, 0.0, config["joint_activation"])
    width, outputs = config["pred_hidden"], config["vocab_size"] + len(config.get("durations", ()))
    with graph.scope("joint"):
        steps = _project(modules, encoded, "encoder_projector", config["d_model"])
        tokens = _project(modules, predicted, "decoder.decoder_projector", width)
        grid = graph.op(
            "Add",
            graph.op("Unsqueeze", steps, graph.constant([2])),
            graph.op("Unsqueeze", tokens, graph.constant([1])),
        )
        logits = _project(modules, modules.activate(grid), "joint.head", width)
    graph.result("outputs", logits, ["batch_size", "steps", "tokens", outputs])


def _project(modules: Modules, x: str, name: str, width: int) -> str:
    """A linear layer over the last of several axes, which is ``width`` wide."""
    graph = modules.graph
    flat = modules.linear(graph.op("Reshape", x, graph.constant([-1, width])), name)
    kept = graph.op("Shape", x, end=-1)
    return graph.op("Reshape", flat, graph.op("Concat", kept, graph.constant([-1]), axis=0))


GRAPHS: Final[Mapping[str, tuple[SpeechGraph, ...]]] = {
    "ctc": (SpeechGraph("model.onnx", ("encoder.", "ctc_head."), ctc),),
    "transducer": (
        SpeechGraph("encoder-model.onnx", ("encoder.",), encoder),
        SpeechGraph("decoder_joint-model.onnx", ("decoder.", "encoder_projector.", "joint."), decoder_joint),
        SpeechGraph("decoder.onnx", ("decoder.embedding.", "decoder.lstm."), prediction_network),
        SpeechGraph(
            "joiner.onnx",
            ("decoder.decoder_projector.", "encoder_projector.", "joint."),
            joint_network,
        ),
    ),
    "aed": (
        SpeechGraph("encoder-model.onnx", ("model.encoder.",), canary.encoder),
        SpeechGraph("decoder-model.onnx", ("model.decoder.", "proj_out."), canary.decoder),
        SpeechGraph("encoder.onnx", ("model.encoder.",), canary.sherpa_encoder),
        SpeechGraph("decoder.onnx", ("model.decoder.", "proj_out."), canary.sherpa_decoder),
    ),
}


def build(
    speech: SpeechModel,
    config: Mapping[str, Value],
    weights: Mapping[str, Weight],
    properties: Mapping[str, str],
    tokens: int | None = None,
) -> dict[str, bytes]:
    """The graphs by file name, of a model config whose weights lie beside them. ``tokens``: how many the
    tokenizer has, None if that is not known.

    Raises CorruptCheckpoint unless every weight is used.
    """
    parts = GRAPHS[speech.head]
    homeless = [name for name in weights if not any(part.holds(name) for part in parts)]
    if homeless:
        raise CorruptCheckpoint(f"{len(homeless)} tensors have no place in a graph: {some(homeless)}")
    listed = {FILES: " ".join(part.file for part in parts)}
    return {
        part.file: _graph(part, config, weights, {**properties, **listed, **metadata(speech, config, tokens)})
        for part in parts
    }


def data_file(speech: SpeechModel) -> str:
    """The name of a file for the weights of all graphs, after the first of them."""
    return GRAPHS[speech.head][0].file + ".data"


def _graph(
    part: SpeechGraph,
    config: Mapping[str, Value],
    weights: Mapping[str, Weight],
    properties: Mapping[str, str],
) -> bytes:
    held = {name: weight for name, weight in weights.items() if part.holds(name)}
    graph = Graph(held, unused=[name for name in held if name.endswith(_UNUSED)], opset=_OPSET)
    part.add(graph, config)
    return graph.model(("nemoconv", __version__), properties)


def metadata(speech: SpeechModel, config: Mapping[str, Value], tokens: int | None) -> dict[str, str]:
    """What sherpa-onnx reads in ``metadata_props``. It knows a TDT model by "tdt" in ``url``; its
    ``vocab_size`` does not count the blank, nor outputs that only pad a vocabulary; its
    ``num_decoder_layers`` is the number of caches."""
    outputs = config["vocab_size"] - (speech.head != "aed")
    found = {
        "model_type": speech.nemo,
        "vocab_size": outputs if tokens is None else tokens,
        "normalize_type": "per_feature",  # the only one that ParakeetFeatureExtractor has
        "subsampling_factor": config["subsampling_factor"],
        "feat_dim": config["feat_in"],
    }
    if speech.head == "transducer":
        found["pred_rnn_layers"] = config["pred_rnn_layers"]
        found["pred_hidden"] = config["pred_hidden"]
        found["url"] = "parakeet_tdt" if "durations" in config else "parakeet_rnnt"
    if speech.head == "aed":
        found["num_decoder_layers"] = 2 * config["num_layers"]
        found["decoder_hidden_size"] = config["hidden_size"]
    return {key: str(value) for key, value in found.items()}
