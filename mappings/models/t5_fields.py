"""Config rules of T5: two stacks of layers, one of which attends to what the other gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ...errors import LayoutError, UnsupportedConfig, some
from ...formats.text.fiddle import Symbol
from ..hf.fields import Value, check_kind
from ..hf.fields_gpt import TANH_GELUS
from ..nemo2.configs_dense import GELU, SILU
from ..nemo2.fields import plain, text

#: feed_forward_proj -> what transformers computes for it, under all its names
_GATES: Final[Mapping[str, frozenset[str]]] = {
    "gated-gelu": TANH_GELUS,
    "gated-silu": frozenset({"silu", "swish"}),
}
_SPECS: Final = tuple(
    Symbol("nemo.collections.llm.t5.model.t5", name)
    for name in ("default_layer_spec", "local_layer_spec", "transformer_engine_layer_spec")
)


@dataclass(frozen=True, slots=True)
class EqualStacks:
    """``num_layers`` of the encoder and ``num_decoder_layers``, the same unless it is given, <->
    ``num_layers``: as many in both, as all released models have."""

    default: int
    hf_keys = frozenset({"num_layers", "num_decoder_layers"})
    fields = frozenset({"num_layers", "encoder_num_layers"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        encoder = check_kind("num_layers", hf.get("num_layers", self.default), int)
        decoder = hf.get("num_decoder_layers")
        if decoder not in (None, encoder):
            raise UnsupportedConfig(
                f"config.json: num_layers={encoder} and num_decoder_layers={decoder!r} differ, and only "
                "models with as many layers in the encoder as in the decoder are supported"
            )
        config["num_layers"] = config["encoder_num_layers"] = encoder

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        hf["num_layers"] = hf["num_decoder_layers"] = config["num_layers"]


@dataclass(frozen=True, slots=True)
class AllHeads:
    """As many key heads as query heads, of any size: config.json has no key for ``num_query_groups``."""

    hf_keys = frozenset[str]()
    fields = frozenset({"num_query_groups"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        config["num_query_groups"] = config["num_attention_heads"]

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        if config["num_query_groups"] != config["num_attention_heads"]:
            raise UnsupportedConfig(
                f"num_query_groups={config['num_query_groups']} of {config['num_attention_heads']} heads has "
                "no counterpart in config.json of this architecture"
            )


@dataclass(frozen=True, slots=True)
class Gate:
    """``feed_forward_proj``, with what transformers writes down of it, <-> ``hidden_act`` of a gated MLP."""

    default: str
    hf_keys = frozenset({"feed_forward_proj", "dense_act_fn", "is_gated_act"})
    fields = frozenset({"hidden_act"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        kind = hf.get("feed_forward_proj", self.default)
        if kind not in _GATES:
            raise UnsupportedConfig(
                f"config.json: feed_forward_proj={kind!r} is not supported, only {some(map(repr, _GATES))}"
            )
        names = _GATES[kind]
        if hf.get("dense_act_fn", next(iter(names))) not in names or hf.get("is_gated_act", True) is not True:
            raise UnsupportedConfig(
                f"config.json: dense_act_fn={hf.get('dense_act_fn')!r} and is_gated_act="
                f"{hf.get('is_gated_act')!r} say something else than feed_forward_proj={kind!r}"
            )
        config["hidden_act"] = "silu" if kind == "gated-silu" else "gelu_pytorch_tanh"

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        hf["feed_forward_proj"] = "gated-silu" if config["hidden_act"] == "silu" else "gated-gelu"


@dataclass(frozen=True, slots=True)
class Unscaled:
    """An output layer of its own, which sees states as they are.

    The first T5 ties it to the embedding and multiplies states by ``d_model ** -0.5`` before it, which
    transformers 4 tells by ``tie_word_embeddings``. transformers 5 writes true for that in any case, and
    ``scale_decoder_outputs`` beside it, unless ``scales`` says that it never does so (mT5).
    """

    scales: bool
    hf_keys = frozenset({"tie_word_embeddings", "scale_decoder_outputs"})
    fields = frozenset[str]()

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        said = hf.get("tie_word_embeddings", True)
        if hf.get("scale_decoder_outputs", self.scales and said is not False) is not False:
            raise UnsupportedConfig(
                f"config.json: tie_word_embeddings={said!r}: a T5 of the first version multiplies states by "
                "d_model ** -0.5 before its output layer, which megatron-core's T5 does not; only later ones "
                "(T5 1.1, Flan-T5, mT5, UL2) can be converted"
            )

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        hf["tie_word_embeddings"] = False
        if self.scales:
            hf["scale_decoder_outputs"] = False


@dataclass(frozen=True, slots=True)
class EncoderLayers:
    """``encoder_num_layers``, as many as ``num_layers``, which are the decoder's.

    NeMo's importer exchanges the two. With pipeline stages NeMo wants to be told how many of them are the
    encoder's, which no other architecture has.
    """

    names = frozenset({"encoder_num_layers", "encoder_pipeline_model_parallel_size"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        found = fields["encoder_num_layers"]
        if found != config["num_layers"]:
            raise UnsupportedConfig(
                f"the NeMo config says encoder_num_layers={text(found)}, num_layers={config['num_layers']}; "
                "only models with as many layers in the encoder as in the decoder are supported"
            )
        config["encoder_num_layers"] = found

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        if config.get("pipeline_parallel_size", 1) != 1:
            raise LayoutError(
                f"pipeline_parallel_size={config['pipeline_parallel_size']}: an encoder and a decoder are "
                "not divided into pipeline stages here",
                hint="leave out --pp; NeMo loads the checkpoint into any layout",
            )
        fields["encoder_num_layers"] = config["num_layers"]


@dataclass(frozen=True, slots=True)
class GatedActivation:
    """``activation_func`` and ``bias_activation_fusion`` <-> ``hidden_act``: Megatron's fused kernel for GELU
    with a gate computes it by tanh, as transformers does for T5; the plain one does not.

    Source: megatron/core/transformer/mlp.py, fusions/fused_bias_geglu.py.
    """

    names = frozenset({"activation_func", "bias_activation_fusion"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        function, fused = plain(fields["activation_func"]), bool(fields["bias_activation_fusion"])
        if function != SILU and (function != GELU or not fused):
            raise UnsupportedConfig(
                f"the NeMo config says activation_func={text(function)} with bias_activation_fusion={fused}; "
                f"only {GELU} with True and {SILU} have a counterpart"
            )
        config["hidden_act"] = "silu" if function == SILU else "gelu_pytorch_tanh"

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        fields["activation_func"] = SILU if config["hidden_act"] == "silu" else GELU
        fields["bias_activation_fusion"] = True


@dataclass(frozen=True, slots=True)
class PlainLayers:
    """``transformer_layer_spec``: one of NeMo's own for T5, which differ in kernels only."""

    names = frozenset({"transformer_layer_spec"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        found = plain(fields.get("transformer_layer_spec", _SPECS[0]))
        if found not in _SPECS:
            raise UnsupportedConfig(
                f"the NeMo config says transformer_layer_spec={text(found)}, which has no counterpart; only "
                f"{some(map(str, _SPECS))} have"
            )

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        """Nothing: the class's default does."""
