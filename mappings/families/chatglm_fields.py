"""ChatGLM: what config.json says, and the fields of NeMo's class that say it.

Source: configuration_chatglm.py of the released models, nemo/collections/llm/gpt/model/chatglm.py.
"""

from ..hf.fields import Dtype, Field, Fixed, Unread
from ..hf.fields_gpt import AutoMap, MultiQueryGroups, RopeRatio
from ..nemo2.configs_gpt import CHATGLM_DEFAULTS
from ..nemo2.fields import DECODER as NEMO_FIELDS
from ..nemo2.fields import NO_BIASES, NemoClasses, Same, with_rules
from ..nemo2.fields import Fixed as NemoFixed

NEMO_RULES = with_rules(
    NEMO_FIELDS,
    NO_BIASES,
    NemoFixed("rotary_interleaved", True, written=True),
    Same("rotary_percent"),
    Same("add_qkv_bias"),
)
CLASSES = NemoClasses(
    module="nemo.collections.llm.gpt.model.chatglm",
    model="ChatGLMModel",
    config="ChatGLMConfig",
    defaults=CHATGLM_DEFAULTS,
    rules=NEMO_RULES,
)
#: of training, of rounding, of heads for other tasks, of prefixes that are tuned apart from the model
UNREAD = tuple(
    """apply_query_key_layer_scaling attention_softmax_in_fp32 bias_dropout_fusion classifier_dropout
    fp32_residual_connection hidden_dropout num_hidden_layers prefix_projection""".split()
)
FIELDS = (
    Field("num_layers", "num_layers", 28),
    Field("hidden_size", "hidden_size", 4096),
    Field("ffn_hidden_size", "ffn_hidden_size", 13696),
    Field("num_attention_heads", "num_attention_heads", 32),
    MultiQueryGroups(),
    Field("kv_channels", "kv_channels", 128),
    Field("padded_vocab_size", "vocab_size", 65024),
    Field("seq_length", "seq_length", 2048),
    Field("layernorm_epsilon", "layernorm_epsilon", 1e-5, kind=float),
    Field("initializer_range", "init_method_std", 0.02, kind=float),
    Field("attention_dropout", "attention_dropout", 0.0, kind=float),
    Field("tie_word_embeddings", "share_embeddings_and_output_weights", False, kind=bool),
    Field("add_qkv_bias", "add_qkv_bias", False, kind=bool),
    Fixed("add_bias_linear", False),
    Fixed("rmsnorm", True),
    Fixed("post_layer_norm", True),
    Fixed("original_rope", True),
    Fixed("apply_residual_connection_post_layernorm", False),
    Fixed("pre_seq_len", None),
    Fixed("quantization_bit", 0),
    RopeRatio(),
    Unread(UNREAD),
    AutoMap("configuration_chatglm.ChatGLMConfig", "modeling_chatglm.ChatGLMForConditionalGeneration"),
    Dtype(),
)
