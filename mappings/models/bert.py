"""BERT: encoders with the norms after attention and MLP, as a ``BertModel``, with the head that fills masks
(``BertForMaskedLM``), or with that and the one for the next sentence (``BertForPreTraining``).

The files of bert-base and bert-large hold all heads, though their config.json says BertForMaskedLM: with
BertForPreTraining for ``architectures`` they are converted whole.
"""

from collections.abc import Mapping
from dataclasses import replace

from ..families import bert_fields, gpt
from ..families.bert_fields import HEADS, Heads
from ..families.bert_rules import NEMO, NORMS, RULES
from ..hf.fields import Value
from ..nemo2.configs_bert import BERT_DEFAULTS
from ..nemo2.fields import NemoClasses
from ..table import Module, Rule, Table


def sizes(config: Mapping[str, Value]) -> dict[str, int]:
    own = {"token_types": config["num_tokentypes"], "hidden_out": config["hidden_size"], "two": 2}
    return gpt.sizes(config) | own


ATTENTION = ("core_attention", "linear_proj", "linear_qkv")
BASE = Table(
    architecture="bert",
    hf_class="BertModel",
    nemo=NemoClasses(
        module="nemo.collections.llm.bert.model.bert",
        model="HuggingFaceBertModel",
        config="HuggingFaceBertConfig",
        defaults=BERT_DEFAULTS,
        rules=bert_fields.NEMO_RULES,
    ),
    fields=bert_fields.FIELDS,
    rules=RULES,
    modules=(
        *(Module(NEMO + f"self_attention.{name}") for name in ATTENTION),
        *(Module(NEMO + f"mlp.linear_{name}") for name in ("fc1", "fc2")),
        *(Module(NEMO + name.removesuffix(".")) for name, _ in NORMS),
        Module("output_layer"),
    ),
    ignored=("bert.embeddings.position_ids",),
    tied=(
        ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
        ("output_layer.weight", "embedding.word_embeddings.weight"),
    ),
    sizes=sizes,
    spellings=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
    verified=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits, with stand-ins for NeMo's layers",
        "real NeMo import, by hand",
    ),
)


def with_heads(hf_class: str, pooler: bool, lm: bool, binary: bool) -> Table:
    """The table of a class with these of :data:`HEADS`."""
    values = pooler, lm, binary
    return replace(
        BASE,
        architecture=f"bert:{hf_class}",
        hf_class=hf_class,
        nemo=replace(BASE.nemo, marks=tuple(zip(HEADS, values, strict=True))),
        fields=(*bert_fields.FIELDS, Heads(values)),
    )


def at_the_top(rule: Rule) -> Rule:
    """The rule for the model without heads, whose tensors have no prefix."""
    return replace(rule, parts=tuple(replace(p, hf=p.hf.removeprefix("bert.")) for p in rule.parts))


MASKED_LM = with_heads("BertForMaskedLM", False, True, False)
PRETRAINING = with_heads("BertForPreTraining", True, True, True)
TABLE = replace(
    with_heads("BertModel", True, False, False),
    architecture="bert",
    rules=tuple(map(at_the_top, RULES)),
    ignored=("embeddings.position_ids",),
    spellings=(*BASE.spellings, (r"^bert\.", "")),
)
