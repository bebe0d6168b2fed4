"""Baichuan 7B: a ``BaichuanForCausalLM``, whose class came with it: a Llama with q, k, v in one tensor.

Source: modeling_baichuan.py of the released models, nemo/collections/llm/gpt/model/baichuan.py. Two things
have no counterpart in NeMo: the ALiBi of the 13B models, which is refused, and the output layer of
Baichuan 2, which divides each row by its length when it runs (``NormHead``; NeMo's importer copies the rows,
and the model that it writes computes other logits). On request the rows are divided once and for all.
"""

from .. import blocks
from ..blocks import HF, NEMO
from ..hf.fields import Dtype, Field, Fixed, Unread
from ..hf.fields_gpt import AutoMap, PlainHeads
from ..hf.rope import Rope
from ..nemo2.configs_gpt import BAICHUAN_DEFAULTS
from ..nemo2.fields import DECODER as NEMO_FIELDS
from ..nemo2.fields import NO_BIASES, NemoClasses, with_rules
from ..nemo2.fields import Fixed as NemoFixed
from ..rules import packed_qkv
from ..table import Table
from .baichuan_fields import BaichuanLimits, PlainOutput

TABLE = Table(
    architecture="baichuan",
    hf_class="BaichuanForCausalLM",
    other_classes=("BaiChuanForCausalLM",),
    nemo=NemoClasses(
        module="nemo.collections.llm.gpt.model.baichuan",
        model="Baichuan2Model",
        config="Baichuan2Config",
        defaults=BAICHUAN_DEFAULTS,
        rules=with_rules(
            NEMO_FIELDS,
            NO_BIASES,
            NemoFixed("position_embedding_type", "rope", written=True),
            PlainOutput(),
        ),
    ),
    fields=(
        BaichuanLimits(),
        Field("num_hidden_layers", "num_layers", 32),
        Field("hidden_size", "hidden_size", 4096),
        Field("intermediate_size", "ffn_hidden_size", 11008),
        Field("num_attention_heads", "num_attention_heads", 32),
        PlainHeads(),
        Field("vocab_size", "vocab_size", 64000),
        Field("rms_norm_eps", "layernorm_epsilon", 1e-6, kind=float),
        Field("initializer_range", "init_method_std", 0.02, kind=float),
        Field("attention_dropout", "attention_dropout", 0.0, kind=float),
        Field("tie_word_embeddings", "share_embeddings_and_output_weights", False, kind=bool),
        Fixed("hidden_act", "silu"),
        Unread(("gradient_checkpointing", "z_loss_weight")),
        AutoMap(
            "configuration_baichuan.BaichuanConfig",
            "modeling_baichuan.BaichuanForCausalLM",
            ("configuration_baichuan.BaiChuanConfig", "modeling_baichuan.BaiChuanForCausalLM"),
        ),
        Rope(),
        Dtype(),
    ),
    rules=(
        blocks.EMBEDDING,
        blocks.input_norm(),
        packed_qkv(NEMO + "self_attention.linear_qkv.weight", HF + "self_attn.W_pack.weight"),
        blocks.PROJ,
        blocks.mlp_norm(),
        blocks.GATED_FC1,
        blocks.FC2,
        blocks.final_norm(),
        blocks.OUTPUT,
    ),
    modules=blocks.MODULES,
    ignored=(blocks.INV_FREQ,),
    tied=blocks.TIED,
    unit_rows=("lm_head.weight",),
    verified=(
        "bit-equal",
        "logits of transformers' Llama",
        "megatron-core logits",
        "real NeMo import (with a stand-in for the released code), by hand",
    ),
)
