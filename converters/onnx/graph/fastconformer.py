"""The FastConformer encoder's graph, which Parakeet and Canary share.

Inputs and outputs have the names that NeMo's own exporter gives: ``audio_signal`` [batch, mels, frames], the
features of a padded batch, and ``length`` [batch] of each row -> states, and how many of them are real. What
lies in the padding enters no real state.

Sources: nemo/collections/asr/modules/conformer_encoder.py, modules/submodules/{subsampling,
conformer_modules, multi_head_attention}.py; transformers/models/parakeet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy

from ....mappings.blocks.place import LAYER
from ....mappings.hf.fields import Value
from .builder import FLOAT32, INT64, Graph
from .mlp import Plain
from .modules import Modules, by_row

FRAMES: Final = "frames"
#: that of torch's LayerNorm and BatchNorm1d
_EPSILON: Final = 1e-5
_FEED_FORWARD: Final = Plain("linear1", "linear2")


@dataclass(frozen=True, slots=True)
class Encoded:
    """``states`` [batch, steps, hidden], and of each row how many of them are real: ``lengths`` [batch],
    ``real`` [batch, steps]."""

    states: str
    lengths: str
    real: str


def encode(graph: Graph, config: Mapping[str, Value], at: str) -> Encoded:
    """Add the inputs and the encoder whose weights' names begin with ``at``."""
    graph.input("audio_signal", FLOAT32, ["batch_size", config["feat_in"], FRAMES])
    graph.input("length", INT64, ["batch_size"])
    features = graph.op("Transpose", graph.to_compute("audio_signal", FLOAT32), perm=[0, 2, 1])
    return encode_features(graph, config, at, features, "length")


def encode_features(
    graph: Graph, config: Mapping[str, Value], at: str, features: str, lengths: str
) -> Encoded:
    """Add the encoder, for ``features`` [batch, frames, mels]."""
    modules = Modules(graph, LAYER, _EPSILON, "silu")
    with graph.scope("subsampling"):
        x, lengths = _Subsampling(modules, config, at + "subsampling.").build(features, lengths)
        steps = Steps(graph, _real(graph, x, 1, lengths))
        x = modules.linear(
            graph.op("Reshape", x, graph.constant([-1, _width(config)])), f"{at}subsampling.linear"
        )
        if config["xscaling"]:
            x = graph.op("Mul", x, graph.scalar(config["d_model"] ** 0.5))
    layers = _Layers(modules, config, steps)
    for number in range(config["n_layers"]):
        with graph.scope(f"layers.{number}"):
            x = layers.build(f"{at}layers.{number}.", x)
    return Encoded(steps.by_row(x), lengths, steps.real)


def _width(config: Mapping[str, Value]) -> int:
    """Features of a step before they are projected to the encoder's width."""
    width: int = config["subsampling_conv_channels"] * (config["feat_in"] // config["subsampling_factor"])
    return width


def _real(graph: Graph, x: str, axis: int, lengths: str) -> str:
    """[batch, steps]: whether a step is before the end of its row; ``axis`` of ``x`` are the steps."""
    count = graph.op("Gather", graph.op("Shape", x), graph.constant(axis))
    numbers = graph.op("Range", graph.constant(0), count, graph.constant(1))
    return graph.op("Less", numbers, graph.op("Unsqueeze", lengths, graph.constant([1])))


def _convolution(graph: Graph, x: str, name: str, **attributes: Any) -> str:
    bias = [graph.weight(name + ".bias")] if graph.has(name + ".bias") else []
    return graph.op("Conv", x, graph.weight(name + ".weight"), *bias, **attributes)


@dataclass(frozen=True, slots=True)
class Steps:
    """What all layers share of a padded batch: which steps are ``real`` [batch, steps], and shapes."""

    graph: Graph
    real: str

    def by_row(self, x: str) -> str:
        """[batch * steps, features] -> [batch, steps, features]."""
        return by_row(self.graph, x, self.real, "rows")

    def by_head(self, x: str, heads: int) -> str:
        """[batch * steps, features] -> [batch, steps, heads, features of a head]."""
        return by_row(self.graph, x, self.real, f"heads.{heads}", (heads, -1))

    def count(self) -> str:
        """[1]: the number of steps."""
        graph = self.graph
        return graph.once("count", lambda: graph.op("Shape", self.real, start=1))

    def unsqueezed(self, axes: list[int]) -> str:
        """``real`` with axes of length one."""
        graph, name = self.graph, "real." + ".".join(map(str, axes))
        return graph.once(name, lambda: graph.op("Unsqueeze", self.real, graph.constant(axes)))


@dataclass(frozen=True, slots=True)
class _Subsampling:
    """Convolutions of stride 2: one, then pairs of a depthwise and a pointwise one (``dw_striding``)."""

    modules: Modules
    config: Mapping[str, Value]
    at: str

    def build(self, features: str, lengths: str) -> tuple[str, str]:
        """[batch, frames, mels] -> ([batch, steps, channels, mels left], lengths in steps)."""
        graph = self.modules.graph
        channels, stages = (
            self.config["subsampling_conv_channels"],
            self.config["subsampling_factor"].bit_length() - 1,
        )
        x = self._masked(graph.op("Unsqueeze", features, graph.constant([1])), lengths)
        for stage in range(stages):
            number, groups = (3 * stage - 1, channels) if stage else (0, 1)
            halving = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
            x = _convolution(graph, x, f"{self.at}layers.{number}", group=groups, **halving)
            one = graph.constant(1)
            lengths = graph.op("Div", graph.op("Add", lengths, one), graph.constant(2))
            x = self._masked(x, lengths)
            if stage:
                x = self._masked(_convolution(graph, x, f"{self.at}layers.{number + 1}"), lengths)
            x = graph.op("Relu", x)
        return graph.op("Transpose", x, perm=[0, 2, 1, 3]), lengths

    def _masked(self, x: str, lengths: str) -> str:
        """Zeros in the padding of [batch, channels, steps, mels], which the next convolution would see."""
        graph = self.modules.graph
        real = graph.op("Unsqueeze", _real(graph, x, 2, lengths), graph.constant([1, 3]))
        return graph.op("Where", real, x, graph.scalar(0.0))


@dataclass(frozen=True, slots=True)
class _Layers:
    """A Conformer's layers: half a feed-forward step, attention, convolution, the other half, a norm."""

    modules: Modules
    config: Mapping[str, Value]
    steps: Steps

    def build(self, at: str, x: str) -> str:
        graph, modules = self.modules.graph, self.modules
        x = self._half_step(at, "1", x)
        with graph.scope("attention"):
            x = graph.op("Add", x, self._attend(at + "self_attn.", modules.norm(x, at + "norm_self_att")))
        with graph.scope("convolution"):
            x = graph.op("Add", x, self._convolve(at + "conv.", modules.norm(x, at + "norm_conv")))
        return modules.norm(self._half_step(at, "2", x), at + "norm_out")

    def _half_step(self, at: str, number: str, x: str) -> str:
        graph, modules = self.modules.graph, self.modules
        with graph.scope(f"feed_forward{number}"):
            normed = modules.norm(x, f"{at}norm_feed_forward{number}")
            computed = _FEED_FORWARD.build(modules, normed, f"{at}feed_forward{number}.", self.config)
            return graph.op("Add", x, graph.op("Mul", computed, graph.scalar(0.5)))

    def _convolve(self, at: str, x: str) -> str:
        """A gated linear unit, a depthwise convolution over the steps of a row, a batch norm of stored
        statistics."""
        graph, modules, steps = self.modules.graph, self.modules, self.steps
        side = self.config["conv_kernel_size"] // 2
        x = graph.op("Transpose", steps.by_row(x), perm=[0, 2, 1])
        both = _convolution(graph, x, at + "pointwise_conv1")
        value, gate = graph.ops("Split", both, outputs=2, axis=1, num_outputs=2)
        x = graph.op("Mul", value, graph.op("Sigmoid", gate))
        x = graph.op("Where", steps.unsqueezed([1]), x, graph.scalar(0.0))
        x = _convolution(graph, x, at + "depthwise_conv", pads=[side, side], group=self.config["d_model"])
        statistics = ("weight", "bias", "running_mean", "running_var")
        weights = (graph.weight(f"{at}norm.{name}") for name in statistics)
        x = modules.activate(graph.op("BatchNormalization", x, *weights, epsilon=_EPSILON))
        graph.carry(at + "norm.num_batches_tracked")
        x = graph.op("Transpose", _convolution(graph, x, at + "pointwise_conv2"), perm=[0, 2, 1])
        return graph.op("Reshape", x, graph.constant([-1, self.config["d_model"]]))

    def _attend(self, at: str, x: str) -> str:
        """Attention with relative positions: scores of what a step holds, and of how far away it is."""
        graph, modules, heads = self.modules.graph, self.modules, self.config["n_heads"]
        query, key, value = (
            self.steps.by_head(modules.linear(x, f"{at}{name}_proj"), heads) for name in ("q", "k", "v")
        )
        by_content, by_place = (
            graph.op("Transpose", graph.op("Add", query, graph.weight(at + name)), perm=[0, 2, 1, 3])
            for name in ("bias_u", "bias_v")
        )
        content = graph.op("MatMul", by_content, graph.op("Transpose", key, perm=[0, 2, 3, 1]))
        distance = self._shifted(graph.op("MatMul", by_place, self._distance_keys(at)))
        scale = graph.scalar((self.config["d_model"] // heads) ** -0.5)
        scores = graph.op("Mul", graph.op("Add", content, distance), scale)
        shares = graph.op("Softmax", graph.widened(self._seen(scores)), axis=-1)
        values = graph.op("Transpose", value, perm=[0, 2, 1, 3])
        mixed = graph.op("MatMul", graph.to_compute(shares, FLOAT32), values)
        joined = graph.op("Transpose", mixed, perm=[0, 2, 1, 3])
        flat = graph.op("Reshape", joined, graph.constant([-1, self.config["d_model"]]))
        return modules.linear(flat, at + "o_proj")

    def _seen(self, scores: str) -> str:
        """Scores [batch, heads, steps, steps], those of padding so low that they take no share; finite, since
        a row of padding alone would have none else."""
        graph = self.modules.graph
        lowest = graph.scalar(float(numpy.finfo(graph.compute.numpy()).min))
        return graph.op("Where", self.steps.unsqueezed([1, 2]), scores, lowest)

    def _distance_keys(self, at: str) -> str:
        """[heads, features of a head, distances]."""
        graph, heads = self.modules.graph, self.config["n_heads"]
        distances = graph.once("distances", self._distances)
        keys = self.modules.linear(distances, at + "relative_k_proj")
        split = graph.op("Reshape", keys, graph.constant([0, heads, -1]))
        return graph.op("Transpose", split, perm=[1, 2, 0])

    def _distances(self) -> str:
        """[2 * steps - 1, hidden]: sine and cosine, side by side, of the distances steps - 1, ...,
        1 - steps. Computed as they are needed, not stored for the longest audio there is."""
        graph, width = self.modules.graph, self.config["d_model"]
        count, one = graph.op("Squeeze", self.steps.count()), graph.constant(1)
        first, end = graph.op("Sub", count, one), graph.op("Neg", count)
        distances = graph.cast(graph.op("Range", first, end, graph.constant(-1)), FLOAT32)
        exponents = numpy.arange(0, width, 2, dtype=numpy.float32) / numpy.float32(width)
        frequencies = numpy.float32(1) / numpy.float32(10_000) ** exponents
        column = graph.op("Unsqueeze", distances, graph.constant([1]))
        angles = graph.op("Mul", column, graph.constant(frequencies, FLOAT32))
        pair = [graph.op("Unsqueeze", graph.op(kind, angles), graph.constant([2])) for kind in ("Sin", "Cos")]
        beside = graph.op("Reshape", graph.op("Concat", *pair, axis=2), graph.constant([-1, width]))
        return graph.to_compute(beside, FLOAT32)

    def _shifted(self, x: str) -> str:
        """[batch, heads, steps, distances] -> [batch, heads, steps, steps]: row i begins with its own
        distance to step 0, which lies i places before the end. Read with a row length of one more, every
        row slips by one (Transformer-XL, appendix B)."""
        graph = self.modules.graph
        count = self.steps.count()
        slipped, straight = graph.once("shapes", lambda: self._shift_shapes(count))
        x = graph.op("Pad", x, graph.constant([0, 0, 0, 1, 0, 0, 0, 0]))
        x = graph.op("Reshape", x, slipped)
        most, one = graph.constant([numpy.iinfo(numpy.int64).max]), graph.constant([1])
        x = graph.op("Slice", x, one, most, graph.constant([2]))
        x = graph.op("Reshape", x, straight)
        return graph.op("Slice", x, graph.constant([0]), count, graph.constant([3]))

    def _shift_shapes(self, count: str) -> tuple[str, str]:
        graph = self.modules.graph
        slipped = graph.op("Concat", graph.constant([0, 0, -1]), count, axis=0)
        straight = graph.op("Concat", graph.constant([0, 0]), count, graph.constant([-1]), axis=0)
        return slipped, straight
