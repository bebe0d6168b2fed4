"""The rules of a decoder's parts that architectures share; their tables put them together."""

from __future__ import annotations

from .rules import fused_qkv, gated, same, vocabulary
from .table import Module, Rule

HF = "model.layers.{layer}."
NEMO = "decoder.layers.{layer}."
UNTIED = (("share_embeddings_and_output_weights", False),)
TIED = (
    ("lm_head.weight", "model.embed_tokens.weight"),
    ("output_layer.weight", "embedding.word_embeddings.weight"),
)
INV_FREQ = HF + "self_attn.rotary_emb.inv_freq"

EMBEDDING = vocabulary("embedding.word_embeddings.weight", "model.embed_tokens.weight")
OUTPUT = vocabulary("output_layer.weight", "lm_head.weight", when=UNTIED)
QKV = fused_qkv(
    NEMO + "self_attention.linear_qkv.weight", *(HF + f"self_attn.{name}_proj.weight" for name in "qkv")
)
QKV_BIAS = fused_qkv(
    NEMO + "self_attention.linear_qkv.bias",
    *(HF + f"self_attn.{name}_proj.bias" for name in "qkv"),
    bias=True,
)
PROJ = same(
    NEMO + "self_attention.linear_proj.weight",
    HF + "self_attn.o_proj.weight",
    "hidden (group query_head head_dim)",
    cut="group",
)
GATED_FC1 = gated(NEMO + "mlp.linear_fc1.weight", HF + "mlp.gate_proj.weight", HF + "mlp.up_proj.weight")
FC2 = same(NEMO + "mlp.linear_fc2.weight", HF + "mlp.down_proj.weight", "hidden ffn", cut="ffn")
QK_NORMS = tuple(
    same(NEMO + f"self_attention.{name}_layernorm.weight", HF + f"self_attn.{name}_norm.weight", "head_dim")
    for name in "qk"
)


def input_norm(kind: str = "weight") -> Rule:
    """The norm before attention; in Megatron a part of the fused projection. ``kind``: weight or bias."""
    nemo = NEMO + "self_attention.linear_qkv.layer_norm_" + kind
    return same(nemo, HF + "input_layernorm." + kind, "hidden", also=(NEMO + "input_layernorm." + kind,))


def mlp_norm(kind: str = "weight", hf: str = "post_attention_layernorm") -> Rule:
    """The norm before the MLP, called ``hf`` in a Hugging Face layer."""
    nemo = NEMO + "mlp.linear_fc1.layer_norm_" + kind
    return same(nemo, HF + f"{hf}.{kind}", "hidden", also=(NEMO + "pre_mlp_layernorm." + kind,))


def layer_norms(where: str, hf: str) -> tuple[Rule, ...]:
    """Weight and bias of a LayerNorm that Hugging Face calls ``hf``. ``where``: input, mlp or final."""
    names = {
        "input": (NEMO + "self_attention.linear_qkv.layer_norm_", NEMO + "input_layernorm."),
        "mlp": (NEMO + "mlp.linear_fc1.layer_norm_", NEMO + "pre_mlp_layernorm."),
        "final": ("decoder.final_layernorm.",),
    }
    first, *others = names[where]
    return tuple(
        same(first + kind, f"{hf}.{kind}", "hidden", also=tuple(other + kind for other in others))
        for kind in ("weight", "bias")
    )


def final_norm(kind: str = "weight") -> Rule:
    return same("decoder.final_layernorm." + kind, "model.norm." + kind, "hidden")


#: RMSNorm, attention without biases, a gated MLP
DECODER = (EMBEDDING, input_norm(), QKV, PROJ, mlp_norm(), GATED_FC1, FC2, final_norm(), OUTPUT)

MODULES = (
    Module(NEMO + "self_attention.core_attention"),
    Module(NEMO + "self_attention.linear_proj"),
    Module(NEMO + "self_attention.linear_qkv"),
    Module(NEMO + "mlp.linear_fc1"),
    Module(NEMO + "mlp.linear_fc2"),
    Module("decoder.final_layernorm"),
)
QK_MODULES = tuple(Module(NEMO + f"self_attention.{name}_layernorm") for name in "qk")
