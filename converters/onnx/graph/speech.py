"""Speech models as the graphs that onnx-asr and sherpa-onnx load.

A graph is small and its weights lie in the safetensors files, so each program gets the cut it expects:
onnx-asr wants prediction and joint network in one graph, sherpa-onnx wants them apart. The features of the
audio are computed outside, as with NeMo's own exporter. Inputs and outputs are float32, whatever the weights.

Sources: onnx_asr/asr.py and models/nemo.py of onnx-asr; offline-transducer-nemo-model.cc and
offline-nemo-enc-dec-ctc-model.cc of sherpa-onnx; nemo/core/classes/exportable.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from ....errors import CorruptCheckpoint, some
from ....mappings.hf.fields import Value
from ....version import __version__
from . import canary, transducer
from .architectures import Speech
from .builder import INT64, Graph, Weight
from .fastconformer import encode

#: the key of metadata_props that lists all graphs of a model
FILES: Final = "nemoconv.files"
#: operators that onnxruntime 1.17 has, which older builds of sherpa-onnx come with
_OPSET: Final = 20
_IDLE: Final = ".num_batches_tracked"


@dataclass(frozen=True, slots=True)
class Part:
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


PARTS: Final[Mapping[str, tuple[Part, ...]]] = {
    "ctc": (Part("model.onnx", ("encoder.", "ctc_head."), ctc),),
    "transducer": (
        Part("encoder-model.onnx", ("encoder.",), encoder),
        Part(
            "decoder_joint-model.onnx", ("decoder.", "encoder_projector.", "joint."), transducer.decoder_joint
        ),
        Part("decoder.onnx", ("decoder.embedding.", "decoder.lstm."), transducer.decoder),
        Part(
            "joiner.onnx",
            ("decoder.decoder_projector.", "encoder_projector.", "joint."),
            transducer.joiner,
        ),
    ),
    "aed": (
        Part("encoder-model.onnx", ("model.encoder.",), canary.encoder),
        Part("decoder-model.onnx", ("model.decoder.", "proj_out."), canary.decoder),
        Part("encoder.onnx", ("model.encoder.",), canary.sherpa_encoder),
        Part("decoder.onnx", ("model.decoder.", "proj_out."), canary.sherpa_decoder),
    ),
}


def build(
    speech: Speech,
    config: Mapping[str, Value],
    weights: Mapping[str, Weight],
    properties: Mapping[str, str],
    tokens: int | None = None,
) -> dict[str, bytes]:
    """The graphs by file name, of a model config whose weights lie beside them. ``tokens``: how many the
    tokenizer has, None if that is not known.

    Raises CorruptCheckpoint unless every weight is used.
    """
    parts = PARTS[speech.head]
    homeless = [name for name in weights if not any(part.holds(name) for part in parts)]
    if homeless:
        raise CorruptCheckpoint(f"{len(homeless)} tensors have no place in a graph: {some(homeless)}")
    listed = {FILES: " ".join(part.file for part in parts)}
    return {
        part.file: _graph(part, config, weights, {**properties, **listed, **metadata(speech, config, tokens)})
        for part in parts
    }


def data_file(speech: Speech) -> str:
    """The name of a file for the weights of all graphs, after the first of them."""
    return PARTS[speech.head][0].file + ".data"


def _graph(
    part: Part, config: Mapping[str, Value], weights: Mapping[str, Weight], properties: Mapping[str, str]
) -> bytes:
    held = {name: weight for name, weight in weights.items() if part.holds(name)}
    graph = Graph(held, idle=[name for name in held if name.endswith(_IDLE)], opset=_OPSET)
    part.add(graph, config)
    return graph.model(("nemoconv", __version__), properties)


def metadata(speech: Speech, config: Mapping[str, Value], tokens: int | None) -> dict[str, str]:
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
