"""Config rules of Falcon: how a layer runs attention and MLP, and how many heads share keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import UnsupportedConfig
from ..families.gpt import PLAIN_LAYERS
from ..hf.fields import Dtype, Field, Fixed, Unread, Value, check_kind
from ..hf.fields_gpt import Gelu, Only
from ..hf.rope import Rope
from ..nemo2.configs_dense import GPT, family
from ..nemo2.fields import DECODER as NEMO_FIELDS
from ..nemo2.fields import ArchivesOnly, Same, with_rules
from ..nemo2.fields import Fixed as NemoFixed

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
class Biases:
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
    defaults=family(
        MegatronGPTModel=family(
            GPT, hidden_dropout=0.0, new_decoder_architecture=False, parallel_attention=False
        )
    ),  # type: ignore[arg-type]
    rules=with_rules(
        NEMO_FIELDS,
        *(rule for rule in PLAIN_LAYERS if "add_bias_linear" not in rule.names),
        NemoFixed("position_embedding_type", "rope", written=True),
        *(Same(name) for name in ("add_bias_linear", "new_decoder_architecture", "parallel_attention")),
    ),
)
FIELDS = (
    Field("num_hidden_layers", "num_layers", 32),
    Field("hidden_size", "hidden_size", 4544),
    FfnSize(),
    Field("num_attention_heads", "num_attention_heads", 71),
    Layers(),
    Gelu("activation", "gelu", "gelu_pytorch_tanh"),
    Biases(),
    Field("vocab_size", "vocab_size", 65024),
    Field("max_position_embeddings", "seq_length", 2048),
    Field("layer_norm_epsilon", "layernorm_epsilon", 1e-5, kind=float),
    Field("initializer_range", "init_method_std", 0.02, kind=float),
    Field("attention_dropout", "attention_dropout", 0.0, kind=float),
    Field("tie_word_embeddings", "share_embeddings_and_output_weights", True, kind=bool),
    Only("alibi", False, default=False, why="NeMo 1's Falcon has rotary embeddings"),
    Fixed("apply_residual_connection_post_layernorm", False),
    Unread(("hidden_dropout",)),
    Rope(),
    Dtype(),
)
