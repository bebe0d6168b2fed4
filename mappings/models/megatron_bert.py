"""Megatron-BERT, NVIDIA's 345M among them: a BERT with its norms before attention and MLP, as a
``MegatronBertModel`` or, with both heads, a ``MegatronBertForPreTraining``; in NeMo 1's archives only.

NeMo 1 calls it a ``MegatronBertModel`` with ``transformer_block_type: pre_ln``. Its head that fills masks has
exact GELU even where the layers' fused kernel computes it by tanh; transformers takes one for both.

Source: transformers/models/megatron_bert, megatron_bert_model.py and megatron/bert of NeMo 1.0 to 2.4.
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
from ..nemo2.fields import ArchivesOnly

#: of NeMo 2's classes, which say whose layers they build
NEMO_2_ONLY = frozenset({"bert_type", "transformer_layer_spec"})
#: where transformers' class has other defaults than its BERT
DEFAULTS = {
    "num_hidden_layers": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "vocab_size": 29056,
}
BLOCKS = Blocks(
    LAYER,
    Attention(bias=ALWAYS, output_bias=ALWAYS),
    Mlp(bias=ALWAYS),
    activation=None,
    heads=BertHeads(),
    generates=False,
)
FIELDS = {
    name: value
    for name, value in classes.defaults("HuggingFaceBertConfig").items()
    if name not in NEMO_2_ONLY
}


def megatron_bert(name: str, hf_class: str, prefix: str, *heads: bool, **more: Any) -> Architecture:
    """A class whose tensors begin with ``prefix``, with the pooler and these heads."""
    masks, sentences = heads
    called = names(prefix, final_norm=prefix + "encoder.ln", input_norm="attention.ln", mlp_norm="ln")
    rules = nemo_rules((True, masks, sentences))
    return Architecture(
        (name,),
        hf_class,
        (Stack(called, BLOCKS, "encoder."),),
        config((True, masks, sentences), DEFAULTS),
        ArchivesOnly(
            module="nemo.collections.nlp.models.language_modeling.megatron_bert_model",
            model="MegatronBertModel",
            config="MegatronBertModel",
            defaults={"MegatronBertModel": FIELDS},
            rules=tuple(rule for rule in rules if not rule.names & NEMO_2_ONLY),
        ),
        ignored=(prefix + "embeddings.position_ids",),
        tied=(
            ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
            ("cls.predictions.decoder.bias", "cls.predictions.bias"),
            ("output_layer.weight", "embedding.word_embeddings.weight"),
        ),
        # its distributed checkpoint would need the output layer, which an encoder has not
        nemo1=Nemo1("megatron-bert", implied=IMPLIED, only_ranks=True),
        proofs=(
            "bit-equal",
            "transformers logits",
            "NeMo 1's own restore and logits, with stand-ins for apex",
        ),
        **more,
    )


MEGATRON_BERT = megatron_bert(
    "megatron-bert", "MegatronBertModel", "", False, False, spellings=((r"^bert\.", ""),)
)
PRETRAINING = megatron_bert(
    "megatron-bert:MegatronBertForPreTraining", "MegatronBertForPreTraining", "bert.", True, True
)
