"""ChatGLM 2 and 3, CodeGeeX 2 and the first GLM-4: a ``ChatGLMModel``, whose class came with it.

q, k, v are one tensor, gate and up another; the rotary embedding turns pairs of neighbours in the first
half of each head.

Source: configuration_chatglm.py and modeling_chatglm.py of the released models,
nemo/collections/llm/gpt/model/chatglm.py.
"""

from ..blocks.attention import Attention
from ..blocks.place import There
from ..blocks.stack import Blocks
from ..hf.fields import Field, Fixed, Unread
from ..hf.fields_gpt import AutoMap, MultiQueryGroups, RopeRatio
from ..llama_like import llama_like
from ..nemo1.entry import Nemo1
from ..nemo2.entry import Nemo2

#: of training, of rounding, of heads for other tasks, of prefixes that are tuned apart from the model
UNREAD = tuple(
    """apply_query_key_layer_scaling attention_softmax_in_fp32 bias_dropout_fusion classifier_dropout
    fp32_residual_connection hidden_dropout num_hidden_layers prefix_projection""".split()
)
#: a Llama whose rotation turns neighbours, with biases of queries, keys and values where config.json says so
BLOCKS = Blocks(attention=Attention(bias=There((("add_qkv_bias", True),))), neighbours=True)
NEMO2 = Nemo2("nemo.collections.llm.gpt.model.chatglm", "ChatGLMModel", "ChatGLMConfig")

CHATGLM = llama_like(
    "chatglm",
    "ChatGLMModel",
    other_classes=("ChatGLMForConditionalGeneration",),
    names={
        "layer": "transformer.encoder.layers.{layer}.",
        "embedding": "transformer.embedding.word_embeddings",
        "final_norm": "transformer.encoder.final_layernorm",
        "head": "transformer.output_layer",
        **dict.fromkeys(("query", "key", "value"), "self_attention.query_key_value"),
        "attention_output": "self_attention.dense",
        **dict.fromkeys(("gate", "up"), "mlp.dense_h_to_4h"),
        "down": "mlp.dense_4h_to_h",
    },
    blocks=BLOCKS,
    keys={
        "num_hidden_layers": "num_layers",
        "intermediate_size": "ffn_hidden_size",
        "vocab_size": "padded_vocab_size",
        "max_position_embeddings": "seq_length",
        "rms_norm_eps": "layernorm_epsilon",
    },
    defaults={
        "num_layers": 28,
        "ffn_hidden_size": 13696,
        "padded_vocab_size": 65024,
        "layernorm_epsilon": 1e-5,
    },
    without=("attention_bias", "mlp_bias", "hidden_act"),
    config=(
        MultiQueryGroups(),
        Field("kv_channels", "kv_channels", 128),
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
    ),
    nemo2=NEMO2,
    ignored=("transformer.rotary_pos_emb.inv_freq",),
    nemo1=Nemo1(read_as="glm"),
    proofs=(
        "bit-equal",
        "logits of transformers' Glm",
        "megatron-core logits",
        "real NeMo import (with a stand-in for the released code), by hand",
    ),
)
