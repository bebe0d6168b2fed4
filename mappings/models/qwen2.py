"""Qwen 2 and 2.5 dense models: a ``Qwen2ForCausalLM``, a Llama with biases on q, k and v only.

Source: transformers/models/qwen2, nemo/collections/llm/gpt/model/qwen2.py.
"""

from ..blocks import DECODER, INV_FREQ, MODULES, QKV_BIAS, TIED
from ..hf.fields import Dtype, Field, Fixed, FullAttention, HeadDim
from ..hf.rope import Rope
from ..nemo2.configs_dense import QWEN2_DEFAULTS
from ..nemo2.fields import DECODER as NEMO_FIELDS
from ..nemo2.fields import NO_BIASES, NemoClasses, with_rules
from ..nemo2.fields import Fixed as NemoFixed
from ..table import Table

TABLE = Table(
    architecture="qwen2",
    hf_class="Qwen2ForCausalLM",
    nemo=NemoClasses(
        module="nemo.collections.llm.gpt.model.qwen2",
        model="Qwen2Model",
        config="Qwen2Config",
        defaults=QWEN2_DEFAULTS,
        rules=with_rules(NEMO_FIELDS, NO_BIASES, NemoFixed("add_qkv_bias", True, written=True)),
        marks=(("num_moe_experts", False), ("mtp_num_layers", False)),
    ),
    fields=(
        Field("num_hidden_layers", "num_layers", 32),
        Field("hidden_size", "hidden_size", 4096),
        Field("intermediate_size", "ffn_hidden_size", 22016),
        Field("num_attention_heads", "num_attention_heads", 32),
        Field("num_key_value_heads", "num_query_groups", 32, default_from="num_attention_heads"),
        HeadDim(),
        Field("vocab_size", "vocab_size", 151936),
        Field("max_position_embeddings", "seq_length", 32768),
        Field("rms_norm_eps", "layernorm_epsilon", 1e-6, kind=float),
        Field("initializer_range", "init_method_std", 0.02, kind=float),
        Field("attention_dropout", "attention_dropout", 0.0, kind=float),
        Field("tie_word_embeddings", "share_embeddings_and_output_weights", False, kind=bool),
        FullAttention(),
        Fixed("hidden_act", "silu"),
        Rope(),
        Dtype(),
    ),
    rules=(*DECODER, QKV_BIAS),
    modules=MODULES,
    ignored=(INV_FREQ,),
    tied=TIED,
    verified=("bit-equal", "transformers logits", "megatron-core logits", "real NeMo import and export"),
)
