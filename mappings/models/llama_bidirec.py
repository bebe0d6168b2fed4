"""Llama embedding models (NV-EmbedQA) and rerankers (NV-RerankQA): Llamas that attend both ways, without
a language head; a reranker scores the pooled states instead.

Source: nemo/collections/llm/gpt/model/llama_embedding.py, reranker.py, and hf_llama_embedding.py, the code
that the released models bring along.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..architecture import Architecture
from ..blocks.stack import Blocks
from ..hf.fields import ConfigRule, Field, Fixed, Unread
from ..hf.fields_gpt import AutoMap, OnlyValue
from ..llama_like import llama_like
from ..nemo2 import classes
from ..nemo2.entry import Nemo2
from ..nemo2.fields import Llama3Scaling, NemoFixed, NemoRule, Same, Unused
from ..nemo2.symbols import BIDIRECTIONAL_SPEC
from ..table import Module

#: how NeMo trains and tokenizes
TRAINING = tuple(
    """truncation_method num_hard_negatives ce_loss_scale label_smoothing in_batch_negatives
    negative_sample_strategy add_bos add_eos importer_cls exporter_cls""".split()
)
UNTIED = "NeMo's model would have an output layer, of which there are no weights"
CODE = "llama_bidirectional_model"


def bidirectional(
    name: str,
    hf_class: str,
    *config: ConfigRule,
    auto_class: str,
    names: Mapping[str, str],
    nemo2: tuple[str, str, str],
    also: tuple[str, ...] = (),
    rules: tuple[NemoRule, ...] = (),
    **more: Any,
) -> Architecture:
    """A Llama that attends both ways. ``nemo2``: module, model and config class, ``also``
    other config classes of it."""
    others = ("hf_llama_embedding.LlamaBidirectionalConfig", f"hf_llama_embedding.{hf_class}")
    tied = OnlyValue(
        "tie_word_embeddings", True, default=False, why=UNTIED, field="share_embeddings_and_output_weights"
    )
    code = AutoMap(f"{CODE}.LlamaBidirectionalConfig", f"{CODE}.{hf_class}", others, auto_class)
    own = (Llama3Scaling(), NemoFixed("transformer_layer_spec", BIDIRECTIONAL_SPEC), Unused(TRAINING))
    return llama_like(
        name,
        hf_class,
        names={"head": "", **names},
        blocks=Blocks(generates=False),
        config=(tied, *config, code),
        samples=({"tie_word_embeddings": True},),
        nemo2=Nemo2(
            *nemo2,
            (*own, *rules),
            defaults=classes.family(nemo2[2], *also),
            scaled_config=nemo2[2],
        ),
        **more,
    )


LLAMA_BIDIREC = bidirectional(
    "llama_bidirec",
    "LlamaBidirectionalModel",
    Fixed("pooling", "avg"),
    Unread(("temperature",)),
    auto_class="AutoModel",
    names={"layer": "layers.{layer}.", "embedding": "embed_tokens", "final_norm": "norm"},
    nemo2=(
        "nemo.collections.llm.gpt.model.llama_embedding",
        "LlamaEmbeddingModel",
        "Llama32EmbeddingConfig1B",
    ),
    also=("Llama32EmbeddingConfig3B",),
    spellings=((r"^model\.", ""),),
    proofs=(
        "bit-equal",
        "states of transformers' Llama",
        "megatron-core states",
        "real NeMo import, by hand",
    ),
)
RERANKER = bidirectional(
    "llama_bidirec:LlamaBidirectionalForSequenceClassification",
    "LlamaBidirectionalForSequenceClassification",
    Field("pooling", "pool_type", "avg", kind=str),
    Field("temperature", "temperature", 1.0, kind=float),
    auto_class="AutoModelForSequenceClassification",
    names={"score": "score"},
    nemo2=(
        "nemo.collections.llm.gpt.model.reranker",
        "ReRankerModel",
        "Llama32Reranker1BConfig",
    ),
    rules=(Same("pool_type"), Same("temperature")),
    extra_modules=(Module("score"),),
    proofs=(
        "bit-equal",
        "states of transformers' Llama",
        "megatron-core states",
        "real NeMo load and save, by hand",
    ),
)
