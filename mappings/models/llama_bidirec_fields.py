"""Llama embedding models and rerankers: what config.json says, and NeMo's fields that say it.

Source: hf_llama_embedding.py of the released models, nemo/collections/llm/gpt/model/llama_embedding.py.
"""

from ..hf.fields import ConfigRule, Dtype, Field, Fixed, HeadDim
from ..hf.fields_gpt import AutoMap, Only
from ..hf.rope import Rope
from ..nemo2.configs_llama import BIDIRECTIONAL_SPEC
from ..nemo2.fields import DECODER as NEMO_FIELDS
from ..nemo2.fields import NO_BIASES, Llama3Scaling, NemoRule, Unused, with_rules
from ..nemo2.fields import Fixed as NemoFixed

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
