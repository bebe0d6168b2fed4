"""Names of T5's tensors: an encoder's layers, a decoder's that also attend to what the encoder gives."""

from collections.abc import Mapping

from ..blocks import NEMO
from ..hf.fields import Value
from ..rules import fused_qkv, gated, same, vocabulary
from ..sizes import attention_sizes
from ..table import Module, Part, Rule

BUCKETS = 32
ENCODER = NEMO.replace("decoder", "encoder")
#: what both stacks have: Megatron's names begin with the first, Hugging Face's with the second; the number of
#: the MLP among a layer's parts
STACKS = ((ENCODER, "encoder.block.{layer}.layer.", 1), (NEMO, "decoder.block.{layer}.layer.", 2))
CROSS = NEMO + "cross_attention."
HF_CROSS = "decoder.block.{layer}.layer.1."
ROWS = "(group query_head head_dim)"


def sizes(config: Mapping[str, Value]) -> dict[str, int]:
    return attention_sizes(config) | {"buckets": BUCKETS, "heads": config["num_attention_heads"], "pair": 2}


def stack(nemo: str, hf: str, mlp: int) -> tuple[Rule, ...]:
    """Self-attention and MLP of the encoder's layers, or of the decoder's."""
    attention, dense = hf + "0.SelfAttention.", f"{hf}{mlp}.DenseReluDense."
    qkv = nemo + "self_attention.linear_qkv."
    norms = (
        same(qkv + "layer_norm_weight", hf + "0.layer_norm.weight", "hidden"),
        same(nemo + "mlp.linear_fc1.layer_norm_weight", f"{hf}{mlp}.layer_norm.weight", "hidden"),
    )
    return (
        norms[0],
        fused_qkv(qkv + "weight", *(f"{attention}{name}.weight" for name in "qkv")),
        same(
            nemo + "self_attention.linear_proj.weight", attention + "o.weight", f"hidden {ROWS}", cut="group"
        ),
        norms[1],
        gated(nemo + "mlp.linear_fc1.weight", dense + "wi_0.weight", dense + "wi_1.weight"),
        same(nemo + "mlp.linear_fc2.weight", dense + "wo.weight", "hidden ffn", cut="ffn"),
    )


KEY_AND_VALUE = tuple(
    Part(f"{HF_CROSS}EncDecAttention.{name}.weight", "(group head_dim) hidden", (("pair", at, 1),))
    for at, name in enumerate("kv")
)
ATTENTION = ("core_attention", "linear_proj", "linear_qkv")
LAYER_MODULES = (*(f"self_attention.{name}" for name in ATTENTION), "mlp.linear_fc1", "mlp.linear_fc2")
_NAMES = (
    *(stack + name for stack in (ENCODER, NEMO) for name in LAYER_MODULES),
    NEMO + "pre_cross_attn_layernorm",
    *(CROSS + name for name in ("core_attention", "linear_q", "linear_kv", "linear_proj")),
    *(f"{stack}.final_layernorm" for stack in ("encoder", "decoder")),
    "lm_head.output_layer",
    "output_layer",
)
MODULES = tuple(map(Module, _NAMES))
RULES = (
    vocabulary("embedding.word_embeddings.weight", "shared.weight"),
    *(
        same(
            f"{name}_relative_pos_emb.relative_attention_bias.weight",
            f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            "buckets heads",
        )
        for name in ("encoder", "decoder")
    ),
    *(rule for each in STACKS for rule in stack(*each)),
    same(NEMO + "pre_cross_attn_layernorm.weight", HF_CROSS + "layer_norm.weight", "hidden"),
    same(CROSS + "linear_q.weight", HF_CROSS + "EncDecAttention.q.weight", f"{ROWS} hidden", cut="group"),
    Rule(CROSS + "linear_kv.weight", "(group pair head_dim) hidden", KEY_AND_VALUE, cut="group"),
    same(CROSS + "linear_proj.weight", HF_CROSS + "EncDecAttention.o.weight", f"hidden {ROWS}", cut="group"),
    same("encoder.final_layernorm.weight", "encoder.final_layer_norm.weight", "hidden"),
    same("decoder.final_layernorm.weight", "decoder.final_layer_norm.weight", "hidden"),
    vocabulary("lm_head.output_layer.weight", "lm_head.weight"),
)
