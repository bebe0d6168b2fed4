"""Falcon: a ``FalconForCausalLM`` with rotary embeddings (7B, 11B, 40B, 180B), in NeMo 1's archives only.

Its layers run attention and MLP side by side, or one after the other, with norms of their own. NeMo 1 has a
layer for that (``name: megatron_falcon_gpt``); NeMo 2 and megatron-core have none. Keys and values of a group
lie beside their queries on both sides, so no matrix changes.

Source: transformers/models/falcon, scripts/checkpoint_converters/convert_falcon_hf_to_nemo.py and
megatron/falcon of NeMo 1.21 to 2.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import UnsupportedConfig
from ..blocks.attention import Attention
from ..blocks.mlp import Mlp
from ..blocks.place import LAYER, There
from ..blocks.stack import Blocks
from ..hf.fields import Fixed, Unread, Value, check_kind
from ..hf.fields_gpt import Gelu, OnlyValue
from ..llama_like import llama_like
from ..nemo1.entry import Nemo1
from ..nemo2 import classes
from ..nemo2.fields import DECODER, ArchivesOnly, FusedGelu, NemoFixed, Same, with_rules
from ..nemo2.symbols import GELU, TANH_GELU
from ..rules import same

_KEYS = "new_decoder_architecture parallel_attn num_ln_in_parallel_attn multi_query num_kv_heads".split()


@dataclass(frozen=True, slots=True)
class Layers:
    """``new_decoder_architecture`` and ``parallel_attention`` of NeMo's FalconTransformerLayer, and
    ``num_query_groups``.

    NeMo's new architecture has a norm each for attention and MLP, which run side by side (Falcon 40B, 180B);
    with ``parallel_attention`` alone they share one (7B, and 11B, which Hugging Face calls new); with neither
    one comes after the other. Source: transformers/models/falcon/modeling_falcon.py,
    megatron/falcon/falcon_decoder_layer.py of NeMo 1.21 to 2.4.
    """

    hf_keys = frozenset(_KEYS)
    fields = frozenset({"new_decoder_architecture", "parallel_attention", "num_query_groups", "kv_channels"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        new = check_kind("new_decoder_architecture", hf.get("new_decoder_architecture", False), bool)
        parallel = check_kind("parallel_attn", hf.get("parallel_attn", True), bool)
        one = check_kind("multi_query", hf.get("multi_query", True), bool) and not new
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        groups = 1 if one else hf.get("num_kv_heads")
        groups = heads if groups is None else check_kind("num_kv_heads", groups, int)
        norms = hf.get("num_ln_in_parallel_attn")
        norms = (2 if new else 1) if norms is None else norms
        if norms not in (1, 2) or (norms == 2 and not (new and parallel)) or (new and not parallel):
            raise UnsupportedConfig(
                f"config.json: new_decoder_architecture={new}, parallel_attn={parallel} and "
                f"num_ln_in_parallel_attn={norms!r} do not go together: transformers runs no such model"
            )
        if heads % groups or hidden % heads or not (new or groups in (1, heads)):
            raise UnsupportedConfig(
                f"config.json: num_kv_heads={groups} of num_attention_heads={heads} and hidden_size={hidden}"
            )
        config |= {"new_decoder_architecture": norms == 2, "parallel_attention": parallel}
        config |= {"num_query_groups": groups, "kv_channels": hidden // heads}

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        two, parallel = bool(config["new_decoder_architecture"]), bool(config["parallel_attention"])
        heads, groups = config["num_attention_heads"], config["num_query_groups"]
        if config["kv_channels"] * heads != config["hidden_size"]:
            raise UnsupportedConfig(
                f"kv_channels={config['kv_channels']} has no counterpart in Falcon's config.json"
            )
        grouped = groups not in (1, heads)
        if grouped and not parallel:
            raise UnsupportedConfig(
                f"num_query_groups={groups} of {heads} heads has no counterpart in a Falcon that runs "
                "attention and MLP one after the other"
            )
        hf["new_decoder_architecture"] = two or grouped
        hf["parallel_attn"] = parallel or two
        hf["num_ln_in_parallel_attn"] = 2 if two else 1
        hf["multi_query"], hf["num_kv_heads"] = two or groups == 1, groups


@dataclass(frozen=True, slots=True)
class LinearBias:
    """``bias``, of every linear layer. NeMo's layers that run side by side leave them out when they run, and
    megatron-core's GELU by tanh is that of layers with biases."""

    hf_keys = frozenset({"bias"})
    fields = frozenset({"add_bias_linear"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        config["add_bias_linear"] = check_kind("bias", hf.get("bias", False), bool)
        _check(config)

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        _check(config)
        hf["bias"] = bool(config["add_bias_linear"])


def _check(config: Mapping[str, Value]) -> None:
    if config["add_bias_linear"] and (config["parallel_attention"] or config["new_decoder_architecture"]):
        raise UnsupportedConfig(
            "a Falcon with biases whose layers run attention and MLP side by side: NeMo 1's layer leaves out "
            "the biases, transformers' does not"
        )
    if not config["add_bias_linear"] and config["hidden_act"] != "gelu":
        raise UnsupportedConfig("a Falcon without biases has exact GELU in NeMo 1, not GELU by tanh")


@dataclass(frozen=True, slots=True)
class FfnSize:
    """``ffn_hidden_size``: four times the hidden size unless it is given."""

    hf_keys = frozenset({"ffn_hidden_size"})
    fields = frozenset({"ffn_hidden_size"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        given = hf.get("ffn_hidden_size")
        config["ffn_hidden_size"] = check_kind(
            "ffn_hidden_size", 4 * config["hidden_size"] if given is None else given, int
        )

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        hf["ffn_hidden_size"] = config["ffn_hidden_size"]


CLASSES = ArchivesOnly(
    module="nemo.collections.nlp.models.language_modeling.megatron_gpt_model",
    model="MegatronGPTModel",
    config="MegatronGPTModel",
    defaults={
        "MegatronGPTModel": classes.defaults(
            "GPTConfig", hidden_dropout=0.0, new_decoder_architecture=False, parallel_attention=False
        )
    },
    rules=with_rules(
        DECODER,
        NemoFixed("normalization", "LayerNorm", written=True),
        NemoFixed("gated_linear_unit", False, written=True),
        FusedGelu(GELU, TANH_GELU),
        NemoFixed("position_embedding_type", "rope", written=True),
        *(Same(name) for name in ("add_bias_linear", "new_decoder_architecture", "parallel_attention")),
    ),
)
HF = "transformer.h.{layer}."
TWO = (("new_decoder_architecture", True),)
ONE = (("new_decoder_architecture", False),)
BIASED = There((("add_bias_linear", True),))
#: Megatron's name, Hugging Face's, when it is there; all are norms of their own, not parts of a linear layer
NORMS = (
    ("input_layernorm.", "ln_attn.", TWO),
    ("pre_mlp_layernorm.", "ln_mlp.", TWO),
    ("input_layernorm.", "input_layernorm.", ONE),
    ("post_self_attn_layernorm.", "post_attention_layernorm.", (("parallel_attention", False),)),
)

FALCON = llama_like(
    "falcon",
    "FalconForCausalLM",
    names={
        "layer": HF,
        "embedding": "transformer.word_embeddings",
        "final_norm": "transformer.ln_f",
        "input_norm": "",
        **dict.fromkeys(("query", "key", "value"), "self_attention.query_key_value"),
        "attention_output": "self_attention.dense",
        "mlp_norm": "",
        "gate": "",
        "up": "mlp.dense_h_to_4h",
        "down": "mlp.dense_4h_to_h",
    },
    blocks=Blocks(
        LAYER, Attention(bias=BIASED, output_bias=BIASED, by_group=True), Mlp(bias=BIASED), activation=None
    ),
    keys={"rms_norm_eps": "layer_norm_epsilon"},
    defaults={
        "hidden_size": 4544,
        "num_attention_heads": 71,
        "vocab_size": 65024,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    },
    without=("attention_bias", "mlp_bias", "hidden_act"),
    config=(
        FfnSize(),
        Layers(),
        Gelu("activation", "gelu", "gelu_pytorch_tanh"),
        LinearBias(),
        OnlyValue("alibi", False, default=False, why="NeMo 1's Falcon has rotary embeddings"),
        Fixed("apply_residual_connection_post_layernorm", False),
        Unread(("hidden_dropout",)),
    ),
    nemo2=CLASSES,
    extra=tuple(
        same(f"decoder.layers.{{layer}}.{nemo}{kind}", f"{HF}{hf}{kind}", "hidden", when=when)
        for nemo, hf, when in NORMS
        for kind in ("weight", "bias")
    ),
    ignored=tuple(HF + f"self_attention.{name}" for name in ("rotary_emb.inv_freq", "maybe_rotary.inv_freq")),
    nemo1=Nemo1(
        words={"name": "megatron_falcon_gpt"}, customized=("new_decoder_architecture", "parallel_attention")
    ),
    proofs=(
        "bit-equal",
        "transformers logits",
        "NeMo 1's own restore and logits, with stand-ins for TransformerEngine",
    ),
)
