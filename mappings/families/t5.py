"""T5 1.1, Flan-T5, UL2 and mT5: an encoder, and a decoder that also attends to what the encoder gives, with a
gated MLP and an output layer of its own.

NeMo's importer leaves the relative positions at megatron-core's 32 buckets up to a distance of 128, whatever
its fields say. Source: transformers/models/t5, nemo/collections/llm/t5/model/t5.py,
megatron/core/models/T5/t5_model.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ...errors import LayoutError, UnsupportedConfig, some
from ...formats.text.fiddle import Symbol
from ..architecture import Architecture
from ..blocks.attention import HEADS
from ..blocks.names import Names
from ..blocks.stack import Blocks, Stack
from ..hf.fields import Field, Fixed, Unread, Value, check_kind
from ..hf.fields_gpt import TANH_GELUS
from ..llama_like import standard
from ..nemo1.entry import Nemo1
from ..nemo2 import classes
from ..nemo2.fields import DECODER, NO_BIASES, NemoClasses, NemoFixed, Unused, plain, text, with_rules
from ..nemo2.symbols import GELU, SILU, T5_SPEC
from ..rules import same, vocabulary
from ..sizes import attention_sizes
from ..table import Module, Part, Rule

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
class FeedForwardProj:
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


_BUCKETS: Final = 32
_DISTANCE: Final = 128
_CROSS: Final = "decoder.layers.{layer}.cross_attention."
_HF_CROSS: Final = "decoder.block.{layer}.layer.1."
#: of training, or the same in every model
_NOT_READ: Final = """rotary_base rotary_percent seq_len_interpolation_factor seq_length seq_length_dec
    max_position_embeddings relative_attention_num_buckets relative_attention_max_distance""".split()


def _sizes(config: Mapping[str, Value]) -> dict[str, int]:
    own = {"buckets": _BUCKETS, "heads": config["num_attention_heads"], "pair": 2}
    return attention_sizes(config) | own


def _stack(name: str, mlp: int, embedding: str = "") -> Stack:
    """The encoder or the decoder; ``mlp`` is the number of the MLP among a layer's parts."""
    dense = f"{mlp}.DenseReluDense."
    names = Names(
        layer=f"{name}.block.{{layer}}.layer.",
        embedding=embedding,
        final_norm=f"{name}.final_layer_norm",
        head="",
        input_norm="0.layer_norm",
        **{role: f"0.SelfAttention.{role[0]}" for role in ("query", "key", "value")},
        attention_output="0.SelfAttention.o",
        mlp_norm=f"{mlp}.layer_norm",
        gate=dense + "wi_0",
        up=dense + "wi_1",
        down=dense + "wo",
    )
    return Stack(names, Blocks(activation=None, respelled=False), name + ".")


def _cross_attention() -> Iterator[Rule]:
    """The decoder's attention to what the encoder gives."""
    attention = _HF_CROSS + "EncDecAttention."
    norm = "decoder.layers.{layer}.pre_cross_attn_layernorm.weight"
    yield same(norm, _HF_CROSS + "layer_norm.weight", "hidden")
    yield same(_CROSS + "linear_q.weight", attention + "q.weight", f"{HEADS} hidden", cut="group")
    parts = tuple(
        Part(f"{attention}{name}.weight", "(group head_dim) hidden", (("pair", at, 1),))
        for at, name in enumerate("kv")
    )
    yield Rule(_CROSS + "linear_kv.weight", "(group pair head_dim) hidden", parts, cut="group")
    yield same(_CROSS + "linear_proj.weight", attention + "o.weight", f"hidden {HEADS}", cut="group")


def t5_like(
    model_type: str,
    hf_class: str,
    defaults: Mapping[str, Value],
    *,
    layers: int,
    gate: str,
    scales: bool,
    read_as: str = "",
    **more: Any,
) -> Architecture:
    """A T5. ``layers`` and ``gate`` are what transformers takes where config.json does not say them;
    ``scales``: see :class:`Unscaled`; ``read_as``: an architecture with the same config in NeMo."""
    config = standard(
        EqualStacks(layers),
        AllHeads(),
        Field("d_kv", "kv_channels", 64),
        Fixed("relative_attention_num_buckets", _BUCKETS),
        Fixed("relative_attention_max_distance", _DISTANCE),
        FeedForwardProj(gate),
        Unscaled(scales),
        Unread(("n_positions", "classifier_dropout", "output_past")),
        keys={
            "hidden_size": "d_model",
            "intermediate_size": "d_ff",
            "num_attention_heads": "num_heads",
            "rms_norm_eps": "layer_norm_epsilon",
            "initializer_range": "initializer_factor",
            "attention_dropout": "dropout_rate",
        },
        defaults={"d_model": 512, "initializer_factor": 1.0, "dropout_rate": 0.1, **defaults},
        without=("max_position_embeddings", "attention_bias", "mlp_bias", "hidden_act", "rope_theta"),
    )
    positions = tuple(
        same(
            f"{name}_relative_pos_emb.relative_attention_bias.weight",
            f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            "buckets heads",
        )
        for name in ("encoder", "decoder")
    )
    return Architecture(
        (model_type,),
        hf_class,
        (_stack("encoder", 1, "shared"), _stack("decoder", 2)),
        config,
        NemoClasses(
            module="nemo.collections.llm.t5.model.t5",
            model="T5Model",
            config="T5Config",
            defaults=classes.family("T5Config"),
            rules=with_rules(
                DECODER,
                NO_BIASES,
                NemoFixed("position_embedding_type", "relative", written=True),
                NemoFixed("normalization", "RMSNorm", written=True),
                NemoFixed("softmax_scale", 1.0, written=True),
                NemoFixed("share_embeddings_and_output_weights", False, written=True),
                EncoderLayers(),
                GatedActivation(),
                PlainLayers(),
                Unused(tuple(_NOT_READ)),
            ),
            read_as=read_as,
        ),
        before=positions,
        extra=(*_cross_attention(), vocabulary("lm_head.output_layer.weight", "lm_head.weight")),
        extra_modules=(
            Module(_CROSS + "core_attention"),
            Module("lm_head.output_layer"),
            Module("output_layer"),
        ),
        ignored=("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",),
        tied=tuple((f"{name}.embed_tokens.weight", "shared.weight") for name in ("encoder", "decoder")),
        stored_twice=(("output_layer.weight", "lm_head.output_layer.weight"),),
        sizes=_sizes,
        nemo1=Nemo1("t5", implied={"transformer_layer_spec": T5_SPEC}, read_as=read_as, only_ranks=True),
        samples=({"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},),
        proofs=(
            "bit-equal",
            "transformers logits",
            "megatron-core logits, with a stand-in for its attention",
            "real NeMo import and export",
        ),
        **more,
    )
