"""NeMo 1's Megatron model classes: what tells them apart, and what tables describe their models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from .. import described, nemo1_architectures
from ..hf.fields import Value
from . import dialects as nemo1_dialects
from . import fields as nemo1_fields
from . import fields_bert as nemo1_fields_bert
from . import fields_t5 as nemo1_fields_t5
from .dialects import Dialect
from .entry import Nemo1
from .rules import YamlRule

#: names of the weights of norms
NORM_WEIGHT: Final = re.compile(r"(?:.+\.)?(?:layer_norm_|\w*layernorm\.)weight")
_MODELS: Final = "nemo.collections.nlp.models."


@dataclass(frozen=True, slots=True)
class Family:
    """One of NeMo 1's model classes and those derived from it.

    ``name`` is what architectures call it that it can be told to be (:class:`.Nemo1`); ``classes`` a pattern
    of its classes' names. ``target`` is the class that is written, ``rank_target`` that of files cut by rank,
    which hold the names of NeMo's own implementation where ``own_ranks``. ``told`` are fields that the
    presence of a tensor tells, ``foreign`` tensors that no table describes, and why.
    """

    name: str
    classes: str
    target: str
    rules: tuple[YamlRule, ...]
    dialect: Dialect
    #: the key that says whether megatron-core's layers are used
    mcore: str
    #: the transformer_block_type that it has, where the class has several
    block: str = ""
    rank_target: str = ""
    own_ranks: bool = False
    inert: frozenset[str] = frozenset()
    told: Mapping[str, str] = field(default_factory=dict, hash=False)
    foreign: Mapping[str, str] = field(default_factory=dict, hash=False)
    #: why its models are not divided into pipeline stages, where they are not
    whole_pipeline: str = ""
    #: what transformers calls the SentencePiece model of such models
    tokenizer_file: str = "tokenizer.model"
    #: what the section of the tokenizer says besides
    tokenizer: Mapping[str, Value] = field(default_factory=dict, hash=False)
    #: NeMo pads the tokenizer's vocabulary itself; otherwise the config states the rows
    pads_vocabulary: bool = False
    #: to a multiple of this, if the model's tables do not say to which
    vocab_divisor: int = 1

    @property
    def architectures(self) -> tuple[str, ...]:
        """The architectures that it can be told to be; where several fit, the first is meant."""
        return nemo1_architectures(self.name)

    def entry(self, architecture: str) -> Nemo1 | None:
        """What its words say of an architecture; None for one that it can not be told to be."""
        known = described(architecture) if architecture in self.architectures else None
        return known.nemo1 if known else None


#: "qwen2_moe" can be said in its words, but is none of these: its layers have shared experts without the gate
GPT: Final = Family(
    name="gpt",
    # NeMo-Aligner's reward models and critics rate texts instead of writing them
    classes=r"(?!.*(?:Reward|Critic)).*GPT.*",
    target=_MODELS + "language_modeling.megatron_gpt_model.MegatronGPTModel",
    rules=nemo1_fields.RULES,
    dialect=nemo1_dialects.GPT,
    mcore="mcore_gpt",
)
BERT: Final = Family(
    name="bert",
    classes="MegatronBert(?:Embedding|TextEmbedding)?Model",
    # the one class that restores an encoder of megatron-core's layers without heads
    target=_MODELS + "information_retrieval.megatron_bert_embedding_model.MegatronBertEmbeddingModel",
    rank_target=_MODELS + "language_modeling.megatron_bert_model.MegatronBertModel",
    own_ranks=True,
    rules=nemo1_fields_bert.RULES,
    dialect=nemo1_dialects.BERT,
    mcore=nemo1_fields_bert.MCORE,
    inert=nemo1_fields_bert.INERT,
    told=nemo1_fields_bert.TOLD,
    foreign={
        "encoder.final_layernorm.weight": (
            "megatron-core's encoder normalises once more after its last layer, which no BERT of "
            "transformers does"
        )
    },
    pads_vocabulary=True,
    block="post_ln",
)
MEGATRON_BERT: Final = replace(
    BERT,
    name="megatron-bert",
    block="pre_ln",
    target=BERT.rank_target,
    rules=nemo1_fields_bert.PRE_LN_RULES,
    dialect=nemo1_dialects.MEGATRON_BERT,
    foreign={},
)
#: T5 1.1 and what has its form; SFT and T0 models are the same, trained further
T5: Final = Family(
    name="t5",
    classes="Megatron(?:T5(?:SFT|Finetune)?|T0)Model",
    target=_MODELS + "language_modeling.megatron_t5_model.MegatronT5Model",
    own_ranks=True,
    rules=nemo1_fields_t5.RULES,
    dialect=nemo1_dialects.T5,
    mcore=nemo1_fields_t5.MCORE,
    inert=nemo1_fields_t5.INERT,
    whole_pipeline="its output layer is not the embedding, which NeMo asks for",
    tokenizer_file="spiece.model",
    # the tokens that stand for gaps, where transformers has them
    tokenizer={
        "num_sentinel_tokens": 100,
        "sentencepiece_legacy": True,
        "add_sentinel_tokens_in_reverse_order": True,
        "add_sentinel_tokens_first": True,
    },
    pads_vocabulary=True,
    vocab_divisor=128,
)
FAMILIES: Final = (GPT, BERT, MEGATRON_BERT, T5)


#: patterns of other classes' names, and why no table describes their models
UNKNOWN: Final = (
    (
        ".*(?:T5|T0|BART|EncDec|EncoderDecoder|NMT).*",
        "of NeMo 1's encoder-decoders only MegatronT5Model, and T0 and SFT models made of it, have a "
        "counterpart",
    ),
    (".*(?:Reward|Critic).*", "it rates texts instead of writing them"),
    (".*Retr(?:o|ieval).*", "its layers look texts up in a data base"),
)


def why_unknown(class_name: str) -> str:
    """What is known of a class without a family; nothing of most."""
    return next((why for pattern, why in UNKNOWN if re.fullmatch(pattern, class_name)), "")


def family_of(class_name: str, block: str) -> Family | None:
    """The family of a class and its transformer_block_type; GPT where no class is given."""
    if not class_name:
        return GPT
    named = [family for family in FAMILIES if re.fullmatch(family.classes, class_name)]
    return next((family for family in named if family.block in ("", block)), None)


def family_for(architecture: str) -> Family | None:
    """The family that can be told to be an architecture."""
    return next((family for family in FAMILIES if family.entry(architecture)), None)
