"""Llama embedding models (NV-EmbedQA) and rerankers (NV-RerankQA): Llamas that attend both ways, without
a language head; a reranker scores the pooled states instead.

Source: nemo/collections/llm/gpt/model/llama_embedding.py, reranker.py, and hf_llama_embedding.py, the code
that the released models bring along.
"""

from dataclasses import replace

from .. import blocks
from ..blocks import INV_FREQ, MODULES
from ..hf.fields import Field, Fixed, Unread
from ..nemo2.configs_llama import EMBEDDING_DEFAULTS, RERANKER_DEFAULTS
from ..nemo2.fields import NemoClasses, Same
from ..rules import same
from ..sizes import attention_sizes
from ..table import Module, Rule, Table
from .llama_bidirec_fields import fields, nemo_rules


def without_prefix(rule: Rule) -> Rule:
    """The rule for the model without a head, whose tensors lie at the top."""
    return replace(rule, parts=tuple(replace(p, hf=p.hf.removeprefix("model.")) for p in rule.parts))


RULES = blocks.DECODER[:-1]
TABLE = Table(
    architecture="llama_bidirec",
    hf_class="LlamaBidirectionalModel",
    nemo=NemoClasses(
        module="nemo.collections.llm.gpt.model.llama_embedding",
        model="LlamaEmbeddingModel",
        config="Llama32EmbeddingConfig1B",
        scaled_config="Llama32EmbeddingConfig1B",
        defaults=EMBEDDING_DEFAULTS,
        rules=nemo_rules(),
    ),
    fields=fields("AutoModel", "LlamaBidirectionalModel", Fixed("pooling", "avg"), Unread(("temperature",))),
    rules=tuple(without_prefix(rule) for rule in RULES),
    modules=MODULES,
    ignored=(INV_FREQ.removeprefix("model."),),
    tied=(("output_layer.weight", "embedding.word_embeddings.weight"),),
    spellings=((r"^model\.", ""),),
    verified=(
        "bit-equal",
        "states of transformers' Llama",
        "megatron-core states",
        "real NeMo import, by hand",
    ),
)
RERANKER = Table(
    architecture="llama_bidirec:LlamaBidirectionalForSequenceClassification",
    hf_class="LlamaBidirectionalForSequenceClassification",
    nemo=NemoClasses(
        module="nemo.collections.llm.gpt.model.reranker",
        model="ReRankerModel",
        config="Llama32Reranker1BConfig",
        scaled_config="Llama32Reranker1BConfig",
        defaults=RERANKER_DEFAULTS,
        rules=nemo_rules(Same("pool_type"), Same("temperature")),
    ),
    fields=fields(
        "AutoModelForSequenceClassification",
        "LlamaBidirectionalForSequenceClassification",
        Field("pooling", "pool_type", "avg", kind=str),
        Field("temperature", "temperature", 1.0, kind=float),
    ),
    rules=(*RULES, same("score.weight", "score.weight", "score hidden", cut="score")),
    modules=(*MODULES, Module("score")),
    ignored=(INV_FREQ,),
    tied=(("output_layer.weight", "embedding.word_embeddings.weight"),),
    sizes=lambda config: attention_sizes(config) | {"score": 1},
    verified=(
        "bit-equal",
        "states of transformers' Llama",
        "megatron-core states",
        "real NeMo load and save, by hand",
    ),
)
