"""ChatGLM 2 and 3, CodeGeeX 2 and the first GLM-4: a ``ChatGLMModel``, whose class came with it.

q, k, v are one tensor, gate and up another; the rotary embedding turns pairs of neighbours in the first
half of each head.

Source: modeling_chatglm.py of the released models, nemo/collections/llm/gpt/model/chatglm.py.
"""

from ..blocks import MODULES, NEMO
from ..families import chatglm_fields
from ..rules import packed_qkv, same, vocabulary
from ..table import Table

HF = "transformer.encoder.layers.{layer}."
BIASED = (("add_qkv_bias", True),)

TABLE = Table(
    architecture="chatglm",
    hf_class="ChatGLMModel",
    other_classes=("ChatGLMForConditionalGeneration",),
    nemo=chatglm_fields.CLASSES,
    fields=chatglm_fields.FIELDS,
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
        "real NeMo import (with a stand-in for the released code), by hand",
    ),
)
