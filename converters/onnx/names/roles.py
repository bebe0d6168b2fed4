"""What each architecture calls the parts of its model that an ONNX graph tells apart.

Parts with the same name are one tensor, one below the other in the order of the roles. Those of experts have
"expert" before their role, where layers without experts may be, too. A name for a role with
its kind ("predictions bias") is that of the tensor itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .model_parts import Place

LAYER: Final = "model.layers.{layer}."
_LLAMA: Final[Mapping[str, str]] = {
    "embedding": "model.embed_tokens",
    "input norm": LAYER + "input_layernorm",
    "query": LAYER + "self_attn.q_proj",
    "key": LAYER + "self_attn.k_proj",
    "value": LAYER + "self_attn.v_proj",
    "query norm": LAYER + "self_attn.q_norm",
    "key norm": LAYER + "self_attn.k_norm",
    "attention output": LAYER + "self_attn.o_proj",
    "mlp norm": LAYER + "post_attention_layernorm",
    "gate": LAYER + "mlp.gate_proj",
    "up": LAYER + "mlp.up_proj",
    "down": LAYER + "mlp.down_proj",
    "final norm": "model.norm",
    "head": "lm_head",
}
_GEMMA2: Final = {
    **_LLAMA,
    "attention output norm": LAYER + "post_attention_layernorm",
    "mlp norm": LAYER + "pre_feedforward_layernorm",
    "mlp output norm": LAYER + "post_feedforward_layernorm",
}
_GLM: Final = {**_LLAMA, **dict.fromkeys(("gate", "up"), LAYER + "mlp.gate_up_proj")}
_GLM4: Final = {
    **_GLM,
    "attention output norm": LAYER + "post_self_attn_layernorm",
    "mlp output norm": LAYER + "post_mlp_layernorm",
}
_PHI3: Final = {**_GLM, **dict.fromkeys(("query", "key", "value"), LAYER + "self_attn.qkv_proj")}
_QWEN3_MOE: Final = {
    **_LLAMA,
    "router": LAYER + "mlp.gate",
    **{f"expert {role}": f"{LAYER}mlp.experts.{{expert}}.{role}_proj" for role in ("gate", "up", "down")},
}
_QWEN2_MOE: Final = {
    **_QWEN3_MOE,
    **{f"shared {role}": f"{LAYER}mlp.shared_expert.{role}_proj" for role in ("gate", "up", "down")},
    "shared scale": LAYER + "mlp.shared_expert_gate",
}
_GLM4_MOE: Final = {
    **_QWEN3_MOE,
    "router correction weight": LAYER + "mlp.gate.e_score_correction_bias",
    **{f"shared {role}": f"{LAYER}mlp.shared_experts.{role}_proj" for role in ("gate", "up", "down")},
}
_MIXTRAL: Final = {
    **_LLAMA,
    "router": LAYER + "block_sparse_moe.gate",
    "expert gate": LAYER + "block_sparse_moe.experts.{expert}.w1",
    "expert up": LAYER + "block_sparse_moe.experts.{expert}.w3",
    "expert down": LAYER + "block_sparse_moe.experts.{expert}.w2",
}
_GPT_OSS: Final = {
    **_LLAMA,
    "sinks weight": LAYER + "self_attn.sinks",
    "router": LAYER + "mlp.router",
    **dict.fromkeys(("expert gate weight", "expert up weight"), LAYER + "mlp.experts.gate_up_proj"),
    **dict.fromkeys(("expert gate bias", "expert up bias"), LAYER + "mlp.experts.gate_up_proj_bias"),
    "expert down weight": LAYER + "mlp.experts.down_proj",
    "expert down bias": LAYER + "mlp.experts.down_proj_bias",
}
_STARCODER2: Final = {**_LLAMA, "up": LAYER + "mlp.c_fc", "down": LAYER + "mlp.c_proj"}
_H: Final = "transformer.h.{layer}."
_GPT2: Final = {
    "embedding": "transformer.wte",
    "positions": "transformer.wpe",
    "input norm": _H + "ln_1",
    **dict.fromkeys(("query", "key", "value"), _H + "attn.c_attn"),
    "attention output": _H + "attn.c_proj",
    "mlp norm": _H + "ln_2",
    "up": _H + "mlp.c_fc",
    "down": _H + "mlp.c_proj",
    "final norm": "transformer.ln_f",
    "head": "lm_head",
}
_N: Final = "gpt_neox.layers.{layer}."
_GPT_NEOX: Final = {
    "embedding": "gpt_neox.embed_in",
    "input norm": _N + "input_layernorm",
    **dict.fromkeys(("query", "key", "value"), _N + "attention.query_key_value"),
    "attention output": _N + "attention.dense",
    "mlp norm": _N + "post_attention_layernorm",
    "up": _N + "mlp.dense_h_to_4h",
    "down": _N + "mlp.dense_4h_to_h",
    "final norm": "gpt_neox.final_layer_norm",
    "head": "embed_out",
}
_B: Final = "encoder.layer.{layer}."
_BERT: Final = {
    "embedding": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "token types": "embeddings.token_type_embeddings",
    "embedding norm": "embeddings.LayerNorm",
    **{role: f"{_B}attention.self.{role}" for role in ("query", "key", "value")},
    "attention output": _B + "attention.output.dense",
    "attention output norm": _B + "attention.output.LayerNorm",
    "up": _B + "intermediate.dense",
    "down": _B + "output.dense",
    "mlp output norm": _B + "output.LayerNorm",
    "pooler": "pooler.dense",
}
_BERT_HEADS: Final = {
    **{role: "bert." + name for role, name in _BERT.items()},
    "transform": "cls.predictions.transform.dense",
    "transform norm": "cls.predictions.transform.LayerNorm",
    "predictions": "cls.predictions.decoder",
    "predictions bias": "cls.predictions.bias",
    "next sentence": "cls.seq_relationship",
}


@dataclass(frozen=True, slots=True)
class Roles:
    """An architecture whose parts the graph tells.

    ``offset_norms``: norms multiply by 1 + weight. ``post_norm``: norms stand in the residual stream.
    ``neighbours``: rotation pairs neighbouring elements of a head. ``by_group``: query, key and value that
    are one tensor alternate, for each group of query heads. ``in_out``: matrices of layers are stored
    [in, out]. ``stacked``: those of experts are, too, one below the other in one tensor, with rows of gate
    and up alternating.
    """

    names: Mapping[str, str]
    offset_norms: bool = False
    post_norm: bool = False
    neighbours: bool = False
    by_group: bool = False
    in_out: bool = False
    stacked: bool = False

    def name(self, place: Place) -> str | None:
        """Hugging Face's name of a weight, None for one that the architecture does not have."""
        role = place.role if place.expert is None else f"expert {place.role}"
        whole = self.names.get(f"{role} {place.kind}")
        name = whole or self.names.get(role)
        if name is None:
            return None
        told = name.format(layer=place.layer, expert=place.expert)
        return told if whole else f"{told}.{place.kind}"


#: by the architecture of the mapping table
ROLES: Final[Mapping[str, Roles]] = {
    "llama": Roles(_LLAMA),
    "mistral": Roles(_LLAMA),
    "qwen2": Roles(_LLAMA),
    "qwen3": Roles(_LLAMA),
    "phi3": Roles(_PHI3),
    "smollm3": Roles(_LLAMA),
    "seed_oss": Roles(_LLAMA),
    "ernie4_5": Roles(_LLAMA, neighbours=True),
    "glm": Roles(_GLM, neighbours=True),
    "glm4": Roles(_GLM4, neighbours=True),
    "gemma": Roles(_LLAMA, offset_norms=True),
    "gemma2": Roles(_GEMMA2, offset_norms=True),
    "gemma3_text": Roles(_GEMMA2, offset_norms=True),
    "nemotron": Roles(_LLAMA, offset_norms=True),
    "starcoder2": Roles(_STARCODER2),
    "mixtral": Roles(_MIXTRAL),
    "qwen3_moe": Roles(_QWEN3_MOE),
    "qwen2_moe": Roles(_QWEN2_MOE),
    "glm4_moe": Roles(_GLM4_MOE),
    "gpt_oss": Roles(_GPT_OSS, stacked=True),
    "gpt2": Roles(_GPT2, in_out=True),
    "gpt_bigcode": Roles(_GPT2, by_group=True),
    "gpt_neox": Roles(_GPT_NEOX, by_group=True),
    "bert": Roles(_BERT, post_norm=True),
    "bert:BertForMaskedLM": Roles(_BERT_HEADS, post_norm=True),
    "bert:BertForPreTraining": Roles(_BERT_HEADS, post_norm=True),
}
