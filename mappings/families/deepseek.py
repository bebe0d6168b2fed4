"""What the tables of DeepSeek V2 and V3 share: latent attention, shared experts, dense layers first.

megatron-core's norms of latents take ``rms_norm_eps``, transformers' always 1e-6: the released DeepSeek
models say 1e-6, and where a model says 1e-5 logits of random weights differ by 1e-4.

Source: transformers/models/deepseek_v3, megatron/core/transformer/multi_latent_attention.py,
nemo/collections/llm/gpt/model/deepseek.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..blocks import EMBEDDING, FC2, GATED_FC1, HF, NEMO, OUTPUT, final_norm, mlp_norm
from ..hf.fields import ConfigRule, Dtype, Field, Fixed, OneOf, Unread, Value
from ..hf.fields_moe import DenseFirst, KeyHeads, ReleasedCode, SharedExperts
from ..hf.rope import Rope
from ..mtp import further_sizes
from ..rules import same
from ..rules_moe import EXPERT_NORM, ROUTED, experts, router, shared_experts
from ..table import Module, Rule

LOW_RANK = (("low_rank_query", True),)
FULL_RANK = (("low_rank_query", False),)
ATTENTION = NEMO + "self_attention."
EXPERT = "mlp.experts.{expert}."


def fields(
    *own: ConfigRule, sizes: tuple[int, ...], dense: int, shared: int, scoring: str
) -> tuple[ConfigRule, ...]:
    """Rules for config.json; ``sizes`` are transformers' defaults of the first six keys."""
    layers, hidden, ffn, heads, vocab, positions = sizes
    return (
        Field("num_hidden_layers", "num_layers", layers),
        Field("hidden_size", "hidden_size", hidden),
        Field("intermediate_size", "ffn_hidden_size", ffn),
        Field("num_attention_heads", "num_attention_heads", heads),
        KeyHeads(),
        Field("vocab_size", "vocab_size", vocab),
        Field("max_position_embeddings", "seq_length", positions),
        Field("rms_norm_eps", "layernorm_epsilon", 1e-6, kind=float),
        Field("initializer_range", "init_method_std", 0.02, kind=float),
        Field("attention_dropout", "attention_dropout", 0.0, kind=float),
        Field("tie_word_embeddings", "share_embeddings_and_output_weights", False, kind=bool),
        Field("kv_lora_rank", "kv_lora_rank", 512),
        Field("qk_nope_head_dim", "qk_head_dim", 128),
        Field("qk_rope_head_dim", "qk_pos_emb_head_dim", 64),
        Field("v_head_dim", "v_head_dim", 128),
        Field("aux_loss_alpha", "moe_aux_loss_coeff", 0.001, kind=float),
        *own,
        SharedExperts(shared),
        DenseFirst(dense),
        OneOf("scoring_func", (scoring,)),
        Fixed("moe_layer_freq", 1),
        Fixed("hidden_act", "silu"),
        Fixed("attention_bias", False),
        # sizes that transformers works out itself, and training
        Unread(("head_dim", "qk_head_dim", "ep_size", "seq_aux")),
        Rope(),
        Dtype(),
    )


def released_code(name: str) -> ReleasedCode:
    """The classes that came with the models, and with those of others that took them over."""
    model = (f"modeling_deepseek.{name}{kind}" for kind in ("Model", "ForCausalLM"))
    return ReleasedCode(frozenset({f"configuration_deepseek.{name}Config", *model}))


def sizes(config: Mapping[str, Value]) -> dict[str, int]:
    """Sizes of the factors of :data:`RULES`."""
    key, turned = config["qk_head_dim"], config["qk_pos_emb_head_dim"]
    return {
        "layers": config["num_layers"],
        "hidden": config["hidden_size"],
        "heads": config["num_attention_heads"],
        "query_dim": key + turned,
        "key_value_dim": key + config["v_head_dim"],
        "value_dim": config["v_head_dim"],
        "query_rank": config["q_lora_rank"] or 0,
        "latent": config["kv_lora_rank"],
        "latent_turned": config["kv_lora_rank"] + turned,
        "ffn": config["ffn_hidden_size"],
        "half": 2,
        "experts": config["num_moe_experts"],
        "moe_ffn": config["moe_ffn_hidden_size"],
        "shared_ffn": config["moe_shared_expert_intermediate_size"],
        **further_sizes(config),
        "vocab": config["vocab_size"],
        "true_vocab": config["vocab_size"],
    }


def layer_sets(config: Mapping[str, Value]) -> dict[str, frozenset[int]]:
    dense, layers = config["first_k_dense_replace"], config["num_layers"]
    return {"dense": frozenset(range(dense)), "sparse": frozenset(range(dense, layers))}


def projection(nemo: str, hf: str, axes: str, cut: str | None = "heads", **more: object) -> Rule:
    rule = same(f"{ATTENTION}{nemo}.weight", f"{HF}self_attn.{hf}.weight", axes, cut=cut)
    return replace(rule, **more)  # type: ignore[arg-type]


def inner_norm(kind: str, hf: str, rank: str, **more: object) -> Rule:
    """The norm of a latent, which TransformerEngine keeps in the projection after it."""
    rule = same(
        f"{ATTENTION}linear_{kind}_up_proj.layer_norm_weight",
        f"{HF}self_attn.{hf}.weight",
        rank,
        also=(f"{ATTENTION}{kind}_layernorm.weight",),
    )
    return replace(rule, **more)  # type: ignore[arg-type]


#: attention and MLPs; a table adds what its router has besides
RULES = (
    EMBEDDING,
    same(NEMO + "input_layernorm.weight", HF + "input_layernorm.weight", "hidden"),
    projection("linear_q_proj", "q_proj", "(heads query_dim) hidden", when=FULL_RANK),
    projection("linear_q_down_proj", "q_a_proj", "query_rank hidden", None, when=LOW_RANK),
    inner_norm("q", "q_a_layernorm", "query_rank", when=LOW_RANK),
    projection("linear_q_up_proj", "q_b_proj", "(heads query_dim) query_rank", when=LOW_RANK),
    projection("linear_kv_down_proj", "kv_a_proj_with_mqa", "latent_turned hidden", None),
    inner_norm("kv", "kv_a_layernorm", "latent"),
    projection("linear_kv_up_proj", "kv_b_proj", "(heads key_value_dim) latent"),
    projection("linear_proj", "o_proj", "hidden (heads value_dim)"),
    *(replace(rule, layers="dense") for rule in (mlp_norm(), GATED_FC1, FC2)),
    replace(EXPERT_NORM, layers="sparse", also=()),
    router("mlp.gate.weight", layers="sparse"),
    *experts(*(EXPERT + f"{name}_proj.weight" for name in ("gate", "up", "down")), layers="sparse"),
    *shared_experts("mlp.shared_experts", layers="sparse"),
    final_norm(),
    OUTPUT,
)
MODULES = (
    Module(NEMO + "input_layernorm"),
    *(Module(ATTENTION + name) for name in ("core_attention", "linear_proj")),
    *(Module(f"{ATTENTION}linear_kv_{way}_proj") for way in ("down", "up")),
    Module(ATTENTION + "linear_q_proj", when=FULL_RANK),
    *(Module(f"{ATTENTION}linear_q_{way}_proj", when=LOW_RANK) for way in ("down", "up")),
    *(Module(f"{NEMO}mlp.linear_{name}", layers="dense") for name in ("fc1", "fc2")),
    Module(NEMO + "pre_mlp_layernorm", layers="sparse"),
    *(Module(f"{ROUTED}linear_{name}", layers="sparse") for name in ("fc1", "fc2")),
    *(Module(f"{NEMO}mlp.shared_experts.linear_{name}", layers="sparse") for name in ("fc1", "fc2")),
    Module("decoder.final_layernorm"),
)
