"""ChatGLM 2 and 3, CodeGeeX 2 and the first GLM-4: a ``ChatGLMModel``, whose class came with it.

q, k, v are one tensor, gate and up another; the rotary embedding turns pairs of neighbours in the first
half of each head.

Source: modeling_chatglm.py of the released models, nemo/collections/llm/gpt/model/chatglm.py.
"""

from nemoconv.mappings.blocks import MODULES, NEMO
from nemoconv.mappings.config_fields import Dtype, Field, Fixed, Unread
from nemoconv.mappings.config_fields_gpt import AutoMap, MultiQueryGroups, RopeRatio
from nemoconv.mappings.nemo_configs_gpt import CHATGLM_DEFAULTS
from nemoconv.mappings.nemo_fields import DECODER as NEMO_FIELDS
from nemoconv.mappings.nemo_fields import NO_BIASES, NemoClasses, Same, with_rules
from nemoconv.mappings.nemo_fields import Fixed as NemoFixed
from nemoconv.mappings.rules import packed_qkv, same, vocabulary
from nemoconv.mappings.table import Table

HF = "transformer.encoder.layers.{layer}."
BIASED = (("add_qkv_bias", True),)
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

TABLE = Table(
    architecture="chatglm",
    hf_class="ChatGLMModel",
    other_classes=("ChatGLMForConditionalGeneration",),
    nemo=CLASSES,
    fields=(
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
    ),
    rules=(
        vocabulary("embedding.word_embeddings.weight", "transformer.embedding.word_embeddings.weight"),
        same(
            NEMO + "self_attention.linear_qkv.layer_norm_weight",
            HF + "input_layernorm.weight",
            "hidden",
            also=(NEMO + "input_layernorm.weight",),
        ),
        packed_qkv(NEMO + "self_attention.linear_qkv.weight", HF + "self_attention.query_key_value.weight"),
        packed_qkv(
            NEMO + "self_attention.linear_qkv.bias",
            HF + "self_attention.query_key_value.bias",
            bias=True,
            when=BIASED,
        ),
        same(
            NEMO + "self_attention.linear_proj.weight",
            HF + "self_attention.dense.weight",
            "hidden (group query_head head_dim)",
            cut="group",
        ),
        same(
            NEMO + "mlp.linear_fc1.layer_norm_weight",
            HF + "post_attention_layernorm.weight",
            "hidden",
            also=(NEMO + "pre_mlp_layernorm.weight",),
        ),
        same(NEMO + "mlp.linear_fc1.weight", HF + "mlp.dense_h_to_4h.weight", "(half ffn) hidden", cut="ffn"),
        same(NEMO + "mlp.linear_fc2.weight", HF + "mlp.dense_4h_to_h.weight", "hidden ffn", cut="ffn"),
        same("decoder.final_layernorm.weight", "transformer.encoder.final_layernorm.weight", "hidden"),
        vocabulary(
            "output_layer.weight",
            "transformer.output_layer.weight",
            when=(("share_embeddings_and_output_weights", False),),
        ),
    ),
    modules=MODULES,
    ignored=("transformer.rotary_pos_emb.inv_freq",),
    tied=(
        ("transformer.output_layer.weight", "transformer.embedding.word_embeddings.weight"),
        ("output_layer.weight", "embedding.word_embeddings.weight"),
    ),
    verified=(
        "bit-equal",
        "logits of transformers' Glm",
        "megatron-core logits",
        "real NeMo import (with a stand-in for the released code)",
    ),
)
