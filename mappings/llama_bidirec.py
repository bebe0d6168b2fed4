"""Llama embedding models (NV-EmbedQA) and rerankers (NV-RerankQA): Llamas that attend both ways, without
a language head; a reranker scores the pooled states instead.

Source: nemo/collections/llm/gpt/model/llama_embedding.py, reranker.py, and hf_llama_embedding.py, the code
that the released models bring along.
"""

from dataclasses import replace

from nemoconv.mappings import blocks
from nemoconv.mappings.blocks import INV_FREQ, MODULES
from nemoconv.mappings.config_fields import ConfigRule, Dtype, Field, Fixed, HeadDim, Unread
from nemoconv.mappings.config_fields_gpt import AutoMap, Only
from nemoconv.mappings.nemo_configs_llama import BIDIRECTIONAL_SPEC, EMBEDDING_DEFAULTS, RERANKER_DEFAULTS
from nemoconv.mappings.nemo_fields import DECODER as NEMO_FIELDS
from nemoconv.mappings.nemo_fields import (
    NO_BIASES,
    Llama3Scaling,
    NemoClasses,
    NemoRule,
    Same,
    Unused,
    with_rules,
)
from nemoconv.mappings.nemo_fields import Fixed as NemoFixed
from nemoconv.mappings.rope import Rope
from nemoconv.mappings.rules import same
from nemoconv.mappings.sizes import attention_sizes
from nemoconv.mappings.table import Module, Rule, Table

#: how NeMo trains and tokenizes
TRAINING = tuple(
    """truncation_method num_hard_negatives ce_loss_scale label_smoothing in_batch_negatives
    negative_sample_strategy add_bos add_eos importer_cls exporter_cls""".split()
)
UNTIED = "NeMo's model would have an output layer, of which there are no weights"


def fields(auto_class: str, hf_class: str, *own: ConfigRule) -> tuple[ConfigRule, ...]:
    code = "llama_bidirectional_model"
    return (
        Field("num_hidden_layers", "num_layers", 32),
        Field("hidden_size", "hidden_size", 4096),
        Field("intermediate_size", "ffn_hidden_size", 11008),
        Field("num_attention_heads", "num_attention_heads", 32),
        Field("num_key_value_heads", "num_query_groups", default_from="num_attention_heads"),
        HeadDim(),
        Field("vocab_size", "vocab_size", 32000),
        Field("max_position_embeddings", "seq_length", 2048),
        Field("rms_norm_eps", "layernorm_epsilon", 1e-6, kind=float),
        Field("initializer_range", "init_method_std", 0.02, kind=float),
        Field("attention_dropout", "attention_dropout", 0.0, kind=float),
        Only(
            "tie_word_embeddings",
            True,
            default=False,
            why=UNTIED,
            field="share_embeddings_and_output_weights",
        ),
        Fixed("attention_bias", False),
        Fixed("mlp_bias", False),
        Fixed("hidden_act", "silu"),
        *own,
        AutoMap(
            f"{code}.LlamaBidirectionalConfig",
            f"{code}.{hf_class}",
            ("hf_llama_embedding.LlamaBidirectionalConfig", f"hf_llama_embedding.{hf_class}"),
            auto_class,
        ),
        Rope(),
        Dtype(),
    )


def nemo_rules(*own: NemoRule) -> tuple[NemoRule, ...]:
    return with_rules(
        NEMO_FIELDS,
        NO_BIASES,
        Llama3Scaling(),
        NemoFixed("transformer_layer_spec", BIDIRECTIONAL_SPEC),
        Unused(TRAINING),
        *own,
    )


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
    verified=("bit-equal", "states of transformers' Llama", "megatron-core states", "real NeMo import"),
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
        "real NeMo load and save",
    ),
)
