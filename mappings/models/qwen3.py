"""Qwen 3 dense models: a ``Qwen3ForCausalLM``, a Llama that normalizes each head of q and k.

Source: transformers/models/qwen3, nemo/collections/llm/gpt/model/qwen3.py.
"""

from ..blocks import DECODER, INV_FREQ, MODULES, QK_MODULES, QK_NORMS, TIED
from ..hf.fields import Dtype, Field, Fixed, FullAttention
from ..hf.rope import Rope
from ..nemo2.configs_dense import QWEN3_DEFAULTS
from ..nemo2.fields import DECODER as NEMO_FIELDS
from ..nemo2.fields import NO_BIASES, Length, NemoClasses, with_rules
from ..nemo2.fields import Fixed as NemoFixed
from ..table import Table

TABLE = Table(
    architecture="qwen3",
    hf_class="Qwen3ForCausalLM",
    nemo=NemoClasses(
        module="nemo.collections.llm.gpt.model.qwen3",
        model="Qwen3Model",
        config="Qwen3Config",
        defaults=QWEN3_DEFAULTS,
        rules=with_rules(NEMO_FIELDS, NO_BIASES, NemoFixed("qk_layernorm", True, written=True), Length()),
    ),
    fields=(
        Field("num_hidden_layers", "num_layers", 32),
        Field("hidden_size", "hidden_size", 4096),
        Field("intermediate_size", "ffn_hidden_size", 22016),
        Field("num_attention_heads", "num_attention_heads", 32),
        Field("num_key_value_heads", "num_query_groups", 32, default_from="num_attention_heads"),
        Field("head_dim", "kv_channels", 128),
        Field("vocab_size", "vocab_size", 151936),
        Field("max_position_embeddings", "seq_length", 32768),
        Field("rms_norm_eps", "layernorm_epsilon", 1e-6, kind=float),
        Field("initializer_range", "init_method_std", 0.02, kind=float),
        Field("attention_dropout", "attention_dropout", 0.0, kind=float),
        Field("tie_word_embeddings", "share_embeddings_and_output_weights", False, kind=bool),
        FullAttention(),
        Fixed("attention_bias", False),
        Fixed("hidden_act", "silu"),
        Rope(),
        Dtype(),
    ),
    rules=(*DECODER, *QK_NORMS),
    modules=(*MODULES, *QK_MODULES),
    ignored=(INV_FREQ,),
    tied=TIED,
    verified=("bit-equal", "transformers logits", "megatron-core logits", "real NeMo import and export"),
)
