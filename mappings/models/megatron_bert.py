"""Megatron-BERT, NVIDIA's 345M among them: a BERT with its norms before attention and MLP, as a
``MegatronBertModel`` or, with both heads, a ``MegatronBertForPreTraining``; in NeMo 1's archives only.

NeMo 1 calls it a ``MegatronBertModel`` with ``transformer_block_type: pre_ln``. Its head that fills masks has
exact GELU even where the layers' fused kernel computes it by tanh; transformers takes one for both.

Source: transformers/models/megatron_bert, megatron_bert_model.py and megatron/bert of NeMo 1.0 to 2.4.
"""

from dataclasses import replace

from ..families import bert_fields, bert_rules
from ..families.bert_fields import HEADS, Heads
from ..families.bert_rules import HF, KINDS, NEMO, both
from ..hf.fields import Field
from ..nemo2.configs_bert import BERT_DEFAULTS
from ..nemo2.fields import ArchivesOnly
from ..rules import same
from ..table import Module, Table
from . import bert

#: of NeMo 2's classes, which say whose layers they build
NEMO_2_ONLY = ("bert_type", "transformer_layer_spec")
#: where transformers' class has other defaults than its BERT
DEFAULTS = {
    "num_hidden_layers": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "vocab_size": 29056,
}
#: a norm in megatron-core, where it is a part of a linear layer, and by itself; in Hugging Face
NORMS = (
    ("self_attention.linear_qkv.layer_norm_", "input_layernorm.", "attention.ln."),
    ("mlp.linear_fc1.layer_norm_", "pre_mlp_layernorm.", "ln."),
)
OTHER_NORMS = ("encoder.initial_layernorm.", *(NEMO + name for name, _ in bert_rules.NORMS))
RULES = (
    *(rule for rule in bert_rules.RULES if not rule.nemo.startswith(OTHER_NORMS)),
    *(
        same(NEMO + nemo + kind, HF + hf + kind, "hidden", also=(NEMO + plain + kind,))
        for nemo, plain, hf in NORMS
        for kind in KINDS
    ),
    *both("encoder.final_layernorm.", "bert.encoder.ln.", "hidden"),
)
FIELDS = tuple(
    replace(rule, default=DEFAULTS[rule.hf]) if isinstance(rule, Field) and rule.hf in DEFAULTS else rule
    for rule in bert_fields.FIELDS
)
BASE = replace(
    bert.BASE,
    architecture="megatron-bert",
    nemo=ArchivesOnly(
        module="nemo.collections.nlp.models.language_modeling.megatron_bert_model",
        model="MegatronBertModel",
        config="MegatronBertModel",
        defaults={
            "MegatronBertModel": {
                name: value
                for name, value in BERT_DEFAULTS["HuggingFaceBertConfig"].items()
                if name not in NEMO_2_ONLY
            }
        },
        rules=tuple(rule for rule in bert_fields.NEMO_RULES if not rule.names & set(NEMO_2_ONLY)),
    ),
    rules=RULES,
    modules=(*bert.BASE.modules[:5], Module("encoder.final_layernorm")),
    spellings=(),
    verified=(
        "bit-equal",
        "transformers logits",
        "NeMo 1's own restore and logits, with stand-ins for apex",
    ),
)


def with_heads(hf_class: str, lm: bool, binary: bool) -> Table:
    """The table of a class with the pooler and these heads."""
    values = True, lm, binary
    return replace(
        BASE,
        architecture=f"megatron-bert:{hf_class}",
        hf_class=hf_class,
        nemo=replace(BASE.nemo, marks=tuple(zip(HEADS, values, strict=True))),
        fields=(*FIELDS, Heads(values)),
    )


PRETRAINING = with_heads("MegatronBertForPreTraining", True, True)
TABLE = replace(
    with_heads("MegatronBertModel", False, False),
    architecture="megatron-bert",
    rules=tuple(map(bert.at_the_top, RULES)),
    ignored=("embeddings.position_ids",),
    spellings=((r"^bert\.", ""),),
)
