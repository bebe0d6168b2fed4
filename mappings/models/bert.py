"""BERT: encoders with the norms after attention and MLP, as a ``BertModel``, with the head that fills masks
(``BertForMaskedLM``), or with that and the one for the next sentence (``BertForPreTraining``).

The files of bert-base and bert-large hold all heads, though their config.json says BertForMaskedLM: with
BertForPreTraining for ``architectures`` they are converted whole.
"""

from __future__ import annotations

from typing import Any

from ..architecture import Architecture
from ..blocks.attention import Attention
from ..blocks.mlp import Mlp
from ..blocks.place import ALWAYS, LAYER
from ..blocks.stack import Blocks, Stack
from ..families.bert import BertHeads, config, names, nemo_rules
from ..nemo1.entry import Nemo1
from ..nemo1.fields_bert import IMPLIED
from ..nemo2 import classes
from ..nemo2.fields import NemoClasses
from ..table import Module

BLOCKS = Blocks(
    LAYER,
    Attention(bias=ALWAYS, output_bias=ALWAYS, after="post_att_layernorm."),
    Mlp(bias=ALWAYS, after="post_mlp_layernorm."),
    activation=None,
    heads=BertHeads(),
    generates=False,
)
DEFAULTS = {
    "num_hidden_layers": 12,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "vocab_size": 30522,
}


def bert(name: str, hf_class: str, prefix: str, *heads: bool, **more: Any) -> Architecture:
    """A class whose tensors begin with ``prefix``, with pooler, head that fills masks, head for the next
    sentence or without."""
    pooler, masks, sentences = heads
    called = names(
        prefix,
        embedding_norm=prefix + "embeddings.LayerNorm",
        final_norm="",
        input_norm="",
        attention_output_norm="attention.output.LayerNorm",
        mlp_norm="",
        mlp_output_norm="output.LayerNorm",
    )
    return Architecture(
        (name,),
        hf_class,
        (Stack(called, BLOCKS, "encoder."),),
        config((pooler, masks, sentences), DEFAULTS),
        NemoClasses(
            module="nemo.collections.llm.bert.model.bert",
            model="HuggingFaceBertModel",
            config="HuggingFaceBertConfig",
            defaults=classes.family("HuggingFaceBertConfig"),
            rules=nemo_rules((pooler, masks, sentences)),
        ),
        extra_modules=(Module("output_layer"),),
        ignored=(prefix + "embeddings.position_ids",),
        tied=(
            ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
            ("cls.predictions.decoder.bias", "cls.predictions.bias"),
            ("output_layer.weight", "embedding.word_embeddings.weight"),
        ),
        nemo1=Nemo1("bert", implied=IMPLIED, only_ranks=name == "bert:BertForPreTraining"),
        proofs=(
            "bit-equal",
            "transformers logits",
            "megatron-core logits, with stand-ins for NeMo's layers",
            "real NeMo import, by hand",
        ),
        **more,
    )


SPELLINGS = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))
BERT = bert("bert", "BertModel", "", True, False, False, spellings=(*SPELLINGS, (r"^bert\.", "")))
MASKED_LM = bert("bert:BertForMaskedLM", "BertForMaskedLM", "bert.", False, True, False, spellings=SPELLINGS)
PRETRAINING = bert(
    "bert:BertForPreTraining", "BertForPreTraining", "bert.", True, True, True, spellings=SPELLINGS
)
