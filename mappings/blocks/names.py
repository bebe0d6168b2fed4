"""Hugging Face's names of an architecture's tensors, by the part that each plays: written here, nowhere else.

The rules, the ONNX graph, the ONNX reader and the pairs of tied tensors all take their names from these.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final


@dataclass(frozen=True, slots=True)
class Names:
    """The name of each role; the defaults are a Llama's. Those of a layer's roles come without ``layer``.

    "" is a role that the model does not have. One name for several roles is one tensor that holds them all,
    one below the other in the order of the roles. ``sinks``, ``correction``, ``predictions_bias`` and experts
    that are stacked name tensors, the others modules, which have a ``.weight`` and perhaps a ``.bias``.
    """

    layer: str = "model.layers.{layer}."
    embedding: str = "model.embed_tokens"
    positions: str = ""
    token_types: str = ""
    embedding_norm: str = ""
    final_norm: str = "model.norm"
    head: str = "lm_head"
    score: str = ""
    # of a BERT's heads
    pooler: str = ""
    transform: str = ""
    transform_norm: str = ""
    predictions: str = ""
    predictions_bias: str = ""
    next_sentence: str = ""
    # of a layer's state-space mixer
    mixer_norm: str = ""
    mixer: str = ""
    # of a layer's attention
    input_norm: str = "input_layernorm"
    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    query_norm: str = ""
    key_norm: str = ""
    query_down: str = ""
    query_down_norm: str = ""
    query_up: str = ""
    latent_down: str = ""
    latent_norm: str = ""
    latent_up: str = ""
    sinks: str = ""
    attention_output: str = "self_attn.o_proj"
    attention_output_norm: str = ""
    # of a layer's MLP, where it is dense
    mlp_norm: str = "post_attention_layernorm"
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"
    mlp_output_norm: str = ""
    # of a layer's experts; those of one expert have the hole {expert}, unless they are stacked
    router: str = ""
    correction: str = ""
    expert_gate: str = ""
    expert_up: str = ""
    expert_down: str = ""
    shared_gate: str = ""
    shared_up: str = ""
    shared_down: str = ""
    shared_scale: str = ""

    def full(self, role: str) -> str:
        """The whole template of a role, "" for one that the model does not have."""
        name: str = getattr(self, role)
        return name if role in TOP or not name else self.layer + name

    def the(self, role: str) -> str:
        """The whole template of a role that a block needs. Raises ValueError for one that the model lacks."""
        if not getattr(self, role):
            raise ValueError(f"a block asks for the {role}, for which there is no name")
        return self.full(role)

    @property
    def packed(self) -> bool:
        """Whether query, key and value are one tensor."""
        return bool(self.query) and self.query == self.key

    @property
    def gated(self) -> bool:
        """Whether the dense MLP has a gate."""
        return bool(self.gate)


#: the roles outside of layers
TOP: Final = frozenset(
    """embedding positions token_types embedding_norm final_norm head score pooler transform transform_norm
    predictions predictions_bias next_sentence""".split()
)
#: all roles, in the order of a model
ROLES: Final = tuple(each.name for each in fields(Names) if each.name != "layer")
#: roles whose names are those of tensors
TENSORS: Final = frozenset({"sinks", "correction", "predictions_bias"})
