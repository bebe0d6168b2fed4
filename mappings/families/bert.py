"""What BERT and Megatron-BERT share: an encoder with token types, its heads, and a vocabulary that NeMo takes
from the tokenizer.

Source: transformers/models/bert, nemo/collections/llm/bert/model/bert.py and base.py. NeMo's model has a
bias for its output layer even without a head, which nobody reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from ...errors import UnsupportedConfig
from ..blocks.names import Names
from ..blocks.place import Place
from ..hf.fields import ConfigRule, Field, Fixed, OneOf, Unread, Value
from ..hf.fields_gpt import Gelu, OnlyValue, PlainHeads
from ..llama_like import standard
from ..nemo2.fields import DECODER, FusedGelu, NemoFixed, NemoRule, OneName, Same, Unused, text, with_rules
from ..nemo2.symbols import BERT_SPEC, GELU, TANH_GELU
from ..rules import When, largest_power_of_two_divisor, same
from ..table import Part, Rule

#: fields that say which heads there are
HEADS: Final = ("add_pooler", "add_lm_head", "bert_binary_head")


@dataclass(frozen=True, slots=True)
class ClassHeads:
    """``add_pooler``, ``add_lm_head`` and ``bert_binary_head``, which in Hugging Face go with the class."""

    values: tuple[bool, bool, bool]
    hf_keys = frozenset[str]()
    fields = frozenset(HEADS)

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        config |= dict(zip(HEADS, self.values, strict=True))

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        """Nothing: the class says it, and a NeMo model with other heads has another table."""


@dataclass(frozen=True, slots=True)
class Head(OneName):
    """A field that says whether there is a head, which the class has or has not."""

    name: str
    there: bool

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        if bool(fields[self.name]) is not self.there:
            raise UnsupportedConfig(
                f"the NeMo config says {self.name}={text(fields[self.name])}, and this class has "
                f"{'one' if self.there else 'none'}"
            )
        config[self.name] = self.there

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        fields[self.name] = config[self.name]


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


_POOLER, _LM_HEAD, _BINARY = (((name, True),) for name in HEADS)


@dataclass(frozen=True, slots=True)
class BertHeads:
    """The pooler, the head that fills masks, and the one for the next sentence; all under conditions."""

    def rules(self, names: Names, at: Place) -> Iterator[Rule]:
        """Weights and biases; a bias has the first axis of its weight."""
        yield from _both("pooler.dense.", names.pooler, "hidden_out hidden", _POOLER)
        yield from _both("lm_head.dense.", names.transform, "hidden_out hidden", _LM_HEAD)
        yield from _both("lm_head.layer_norm.", names.transform_norm, "hidden", _LM_HEAD)
        yield from _both("binary_head.", names.next_sentence, "two hidden", _BINARY)
        bias = Part(names.predictions_bias, "vocab", (("vocab", 0, "true_vocab"),))
        nemo = "output_layer.bias"
        yield Rule(nemo, "vocab", (bias,), cut="vocab", pad="vocab", hf_when=_LM_HEAD, never_read=True)

    def sizes(self, config: Mapping[str, Value]) -> dict[str, int]:
        """Of the heads' outputs."""
        return {"hidden_out": config["hidden_size"], "two": 2}


def _both(nemo: str, hf: str, axes: str, when: When) -> Iterator[Rule]:
    yield same(nemo + "weight", hf + ".weight", axes, when=when)
    yield same(nemo + "bias", hf + ".bias", axes.split()[0], when=when)


def names(prefix: str, **layer: str) -> Names:
    """Names of an encoder whose tensors begin with ``prefix``; ``layer`` are those of its norms."""
    return Names(
        layer=prefix + "encoder.layer.{layer}.",
        embedding=prefix + "embeddings.word_embeddings",
        positions=prefix + "embeddings.position_embeddings",
        token_types=prefix + "embeddings.token_type_embeddings",
        head="",
        pooler=prefix + "pooler.dense",
        transform="cls.predictions.transform.dense",
        transform_norm="cls.predictions.transform.LayerNorm",
        predictions="cls.predictions.decoder",
        predictions_bias="cls.predictions.bias",
        next_sentence="cls.seq_relationship",
        **{role: f"attention.self.{role}" for role in ("query", "key", "value")},
        attention_output="attention.output.dense",
        gate="",
        up="intermediate.dense",
        down="output.dense",
        **layer,
    )


def config(heads: tuple[bool, bool, bool], defaults: Mapping[str, Value]) -> tuple[ConfigRule, ...]:
    """Rules for config.json of a class with these of :data:`HEADS`."""
    return standard(
        PlainHeads(),
        Field("type_vocab_size", "num_tokentypes", 2),
        OnlyValue("tie_word_embeddings", True, default=True, field="share_embeddings_and_output_weights"),
        Gelu("hidden_act", "gelu", "gelu_new"),
        OneOf("position_embedding_type", ("absolute", None)),
        Fixed("is_decoder", False),
        Fixed("add_cross_attention", False),
        Unread(("hidden_dropout_prob", "classifier_dropout", "gradient_checkpointing")),
        ClassHeads(heads),
        keys={"rms_norm_eps": "layer_norm_eps", "attention_dropout": "attention_probs_dropout_prob"},
        defaults={
            "max_position_embeddings": 512,
            "layer_norm_eps": 1e-12,
            "attention_probs_dropout_prob": 0.1,
            **defaults,
        },
        without=("attention_bias", "mlp_bias", "rope_theta"),
    )


def nemo_rules(heads: tuple[bool, bool, bool]) -> tuple[NemoRule, ...]:
    """Rules for NeMo's config of a class with these of :data:`HEADS`."""
    return with_rules(
        DECODER,
        NemoFixed("normalization", "LayerNorm", written=True),
        NemoFixed("gated_linear_unit", False, written=True),
        NemoFixed("add_bias_linear", True, written=True),
        FusedGelu(GELU, TANH_GELU),
        TokenizerVocabulary(),
        NemoFixed("position_embedding_type", "learned_absolute", written=True),
        NemoFixed("bert_type", "huggingface", written=True),
        NemoFixed("transformer_layer_spec", BERT_SPEC),
        *map(Head, HEADS, heads),
        Same("num_tokentypes"),
        Unused(
            ("rotary_base", "rotary_percent", "seq_len_interpolation_factor", "mask_vocab_padding_tokens")
        ),
    )
