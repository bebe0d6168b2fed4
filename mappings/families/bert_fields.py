"""Config rules of BERT: which heads a class has, and a vocabulary that NeMo takes from the tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ..hf.fields import Dtype, Field, Fixed, OneOf, Unread, Value
from ..hf.fields_gpt import Gelu, Only, PlainHeads
from ..nemo2.configs_bert import BERT_SPEC
from ..nemo2.fields import DECODER as NEMO_FIELDS
from ..nemo2.fields import Fixed as NemoFixed
from ..nemo2.fields import Same, Unused, with_rules
from ..rules import largest_power_of_two_divisor
from . import gpt

#: fields that say which heads there are
HEADS: Final = ("add_pooler", "add_lm_head", "bert_binary_head")


@dataclass(frozen=True, slots=True)
class Heads:
    """``add_pooler``, ``add_lm_head`` and ``bert_binary_head``, which in Hugging Face go with the class."""

    values: tuple[bool, bool, bool]
    hf_keys = frozenset[str]()
    fields = frozenset(HEADS)

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        config |= dict(zip(HEADS, self.values, strict=True))

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        """Nothing: the class says it, and a NeMo model with other heads has another table."""


@dataclass(frozen=True, slots=True)
class TokenizerVocabulary:
    """A config class without ``vocab_size``: NeMo rounds the size of the tokenizer up to a multiple of
    ``make_vocab_size_divisible_by`` times the tensor-parallel size, which has to give the rows written."""

    names = frozenset({"make_vocab_size_divisible_by", "vocab_size"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        config["vocab_size"] = None

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        rows = config["vocab_size"] // config.get("tensor_parallel_size", 1)
        fields["make_vocab_size_divisible_by"] = largest_power_of_two_divisor(rows)


#: rules for config.json, but for the heads
FIELDS: Final = (
    Field("num_hidden_layers", "num_layers", 12),
    Field("hidden_size", "hidden_size", 768),
    Field("intermediate_size", "ffn_hidden_size", 3072),
    Field("num_attention_heads", "num_attention_heads", 12),
    PlainHeads(),
    Field("vocab_size", "vocab_size", 30522),
    Field("max_position_embeddings", "seq_length", 512),
    Field("type_vocab_size", "num_tokentypes", 2),
    Field("layer_norm_eps", "layernorm_epsilon", 1e-12, kind=float),
    Field("initializer_range", "init_method_std", 0.02, kind=float),
    Field("attention_probs_dropout_prob", "attention_dropout", 0.1, kind=float),
    Only("tie_word_embeddings", True, default=True, field="share_embeddings_and_output_weights"),
    Gelu("hidden_act", "gelu", "gelu_new"),
    OneOf("position_embedding_type", ("absolute", None)),
    Fixed("is_decoder", False),
    Fixed("add_cross_attention", False),
    Unread(("hidden_dropout_prob", "classifier_dropout", "gradient_checkpointing")),
    Dtype(),
)
NEMO_RULES: Final = with_rules(
    NEMO_FIELDS,
    *gpt.PLAIN_LAYERS,
    TokenizerVocabulary(),
    NemoFixed("position_embedding_type", "learned_absolute", written=True),
    NemoFixed("bert_type", "huggingface", written=True),
    NemoFixed("transformer_layer_spec", BERT_SPEC),
    *(Same(name) for name in (*HEADS, "num_tokentypes")),
    Unused(("rotary_base", "rotary_percent", "seq_len_interpolation_factor", "mask_vocab_padding_tokens")),
)
