"""``model_config.yaml`` of NeMo 1's ``MegatronBertModel`` <-> the fields of NeMo 2's BERT config class.

Source: megatron_bert_model.py, megatron/bert/bert_model.py and
information_retrieval/megatron_bert_embedding_model.py of NeMo 1.20 to 2.4, and NeMo's
scripts/checkpoint_converters/convert_bert_hf_to_nemo.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ...errors import CorruptCheckpoint, UnsupportedConfig
from ..hf.fields import Value
from ..nemo2.fields import plain, text
from ..nemo2.symbols import BERT_SPEC, GELU, TANH_GELU
from .rules import Required, Says, YamlKey, YamlOnly, YamlRule, key

#: whether megatron-core's layers are used, or NeMo's own
MCORE: Final = "mcore_bert"
BLOCK: Final = "transformer_block_type"


@dataclass(frozen=True, slots=True)
class YamlPositions:
    """``max_position_embeddings``, the rows of the embedding, <-> ``seq_length``. ``encoder_seq_length`` is
    that of a training run."""

    keys = frozenset({"encoder_seq_length", "max_position_embeddings"})
    fields = frozenset({"seq_length"})

    def read(self, yaml: Mapping[str, Value], fields: dict[str, Value]) -> None:
        found = yaml.get("max_position_embeddings", 512)
        if not isinstance(found, int) or isinstance(found, bool) or found < 1:
            raise CorruptCheckpoint(f"model_config.yaml: max_position_embeddings={text(found)!r}")
        fields["seq_length"] = found

    def write(self, fields: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        yaml |= dict.fromkeys(sorted(self.keys), fields["seq_length"])


@dataclass(frozen=True, slots=True)
class YamlGelu:
    """GELU, by tanh where the kernel that adds the bias as well computes it: ``bias_activation_fusion`` of
    megatron-core's layers, ``bias_gelu_fusion`` of NeMo's own. ``activation`` can say nothing else."""

    keys = frozenset({"activation", "openai_gelu", "bias_activation_fusion", "bias_gelu_fusion"})
    fields = frozenset({"activation_func", "gated_linear_unit", "bias_activation_fusion"})

    def read(self, yaml: Mapping[str, Value], fields: dict[str, Value]) -> None:
        name = yaml.get("activation", "gelu")
        if name != "gelu":
            raise UnsupportedConfig(f"model_config.yaml: activation={text(name)}, where only gelu is built")
        by_name = bool(yaml.get("openai_gelu")) and bool(yaml.get(MCORE))  # its own layers are not told
        fused = yaml.get("bias_activation_fusion" if yaml.get(MCORE) else "bias_gelu_fusion", True)
        fields |= {"activation_func": TANH_GELU if by_name else GELU, "gated_linear_unit": False}
        fields["bias_activation_fusion"] = bool(fused)

    def write(self, fields: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        function, gated = plain(fields["activation_func"]), bool(fields["gated_linear_unit"])
        if gated or function not in (GELU, TANH_GELU):
            raise UnsupportedConfig(f"NeMo 1's BERT has no activation {text(fields['activation_func'])!r}")
        fused = bool(fields["bias_activation_fusion"]) or function == TANH_GELU
        yaml |= {"activation": "gelu", "bias_activation_fusion": fused, "bias_gelu_fusion": fused}


@dataclass(frozen=True, slots=True)
class YamlHeads:
    """``bert_binary_head``, ``add_pooler`` and ``add_lm_head``. With the first NeMo 1 builds two token types
    and, where there is a head for masks, the one for the next sentence; without it, no token types.

    Which heads a file holds is told by its tensors (:data:`TOLD`): NeMo's own script leaves them out.
    """

    keys = frozenset({"bert_binary_head", "add_pooler", "add_lm_head"})
    fields = frozenset({"num_tokentypes", *keys})

    def read(self, yaml: Mapping[str, Value], fields: dict[str, Value]) -> None:
        if not yaml.get("bert_binary_head", True):
            raise UnsupportedConfig(
                "model_config.yaml: bert_binary_head is off, with which NeMo 1 builds no token types; "
                "transformers' BERT has at least one"
            )
        fields["num_tokentypes"] = 2

    def write(self, fields: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        if fields["num_tokentypes"] != 2:
            raise UnsupportedConfig(
                f"NeMo 1's BERT has 2 token types, this one {text(fields['num_tokentypes'])}"
            )
        masks, sentences = bool(fields["add_lm_head"]), bool(fields["bert_binary_head"])
        if masks != sentences or not fields["add_pooler"]:
            raise UnsupportedConfig(
                "NeMo 1 builds token types only together with the pooler and, beside the head that fills "
                "masks, the one for the next sentence: of transformers' classes it can hold BertModel and "
                "BertForPreTraining",
                hint="name one of them in config.json's architectures, if the tensors are there",
            )
        yaml |= {"bert_binary_head": True, "add_pooler": True, "add_lm_head": masks}


#: heads of a model: the tensor that says so
TOLD: Final[Mapping[str, str]] = {
    "add_pooler": "pooler.dense.weight",
    "add_lm_head": "lm_head.dense.weight",
    "bert_binary_head": "binary_head.weight",
}
#: fields of the NeMo 2 class that NeMo 1's class needs no word for
IMPLIED: Final[Mapping[str, Value]] = {
    "transformer_layer_spec": BERT_SPEC,
    "bert_type": "huggingface",
    "mask_vocab_padding_tokens": False,
    "normalization": "LayerNorm",
}
RULES: Final[tuple[YamlRule, ...]] = (
    YamlPositions(),
    Required("num_layers", "num_layers"),
    Required("hidden_size", "hidden_size"),
    Required("num_attention_heads", "num_attention_heads"),
    key("ffn_hidden_size"),
    key("kv_channels"),
    key("init_method_std", 0.02),
    key("hidden_dropout", 0.1),
    key("attention_dropout", 0.1),
    key("layernorm_epsilon", 1e-5),
    YamlGelu(),
    YamlHeads(),
    YamlKey("bias", "add_bias_linear", True),
    key("share_embeddings_and_output_weights", True),
    key("position_embedding_type", "learned_absolute"),
    Says(BLOCK, "post_ln", "pre_ln"),
    YamlOnly("normalization", ("layernorm", "LayerNorm")),
    YamlOnly("layernorm_zero_centered_gamma", (False, None)),
    YamlOnly("megatron_legacy", (False, None)),
)
#: of a BERT with its norms before attention and MLP
PRE_LN_RULES: Final[tuple[YamlRule, ...]] = (
    *(rule for rule in RULES if BLOCK not in rule.keys),
    Says(BLOCK, "pre_ln", "pre_ln"),
)
#: of training runs, of what embedding models are trained for, and what this class never reads
INERT: Final = frozenset(
    """mcore_bert num_tokentypes label_smoothing softmax_temp global_inbatch_negatives backprop_type
    return_embeddings lddl_data_path headscale normalize_attention_scores attention_type""".split()
)
