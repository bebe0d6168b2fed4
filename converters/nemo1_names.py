"""What the state dicts of Megatron GPT models in ``.nemo`` files call their tensors, in our tables' names.

NeMo has had two implementations: its own (``model.language_model.encoder.layers.0.self_attention.
query_key_value``) and megatron-core's (``model.decoder.layers.0.self_attention.linear_qkv``). Wrappers add
``module.`` (``megatron_amp_O2``) or ``_orig_mod.`` (torch.compile). Source: nlp_overrides.py,
``modify_state_dict``, and megatron/gpt_model.py of NeMo 1.0 to 2.4.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

#: of NeMo's own implementation; the first that fits is taken
_PRE_MCORE: Final = (
    (re.compile(r"language_model\.embedding\.(.+)"), r"embedding.\1"),
    (re.compile(r"language_model\.output_layer\.(.+)"), r"output_layer.\1"),
    (re.compile(r"language_model\.rotary_pos_emb\.(.+)"), r"rotary_pos_emb.\1"),
    (re.compile(r"language_model\.(?:encoder|transformer)\.(.+)"), r"decoder.\1"),
    (re.compile(r"word_embeddings\.weight"), "output_layer.weight"),
)
_MODULES: Final = (
    (".attention.", ".self_attention."),
    (".self_attention.query_key_value.", ".self_attention.linear_qkv."),
    (".self_attention.dense.", ".self_attention.linear_proj."),
    (".post_attention_layernorm.", ".pre_mlp_layernorm."),
    (".mlp.dense_h_to_4h.", ".mlp.linear_fc1."),
    (".mlp.dense_4h_to_h.", ".mlp.linear_fc2."),
)
#: the second matrix of a gated MLP that is not fused (``activation: swiglu``, not ``fast-swiglu``)
_UP: Final = re.compile(r"(.+\.mlp)\.dense_h_to_4h_2\.(.+)")
_LAYER: Final = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
_CHUNK: Final = re.compile(r"model(\d+)\.(.+)")
#: TransformerEngine's grouped experts: one parameter each, numbered behind
_GROUPED: Final = re.compile(r"(.+\.mlp\.experts)\.(linear_fc[12])\.(weight|bias)(\d+)")
_SHARED: Final = re.compile(r"(.+\.mlp)\.shared_experts?\.(.+)")
#: computed from the config whenever a model is built
DERIVED: Final = ("rotary_pos_emb.inv_freq",)


@dataclass(frozen=True, slots=True)
class Name:
    """A tensor of a rank's state dict: its name in our tables' words but for the layer, which counts
    from 0 in each run of layers; ``chunk`` is the run where a rank holds several (interleaved stages).
    ``half`` is 0 or 1 for one of two matrices that a table keeps as one, gate and up."""

    text: str
    layer: int | None
    chunk: int = 0
    half: int | None = None

    def at(self, layer: int | None) -> str:
        """The whole name, for the layer of that number in the model."""
        return self.text if layer is None else f"decoder.layers.{layer}.{self.text}"


def parse(key: str) -> Name:
    """The tensor that a key of a state dict is, as far as keys tell."""
    key = key.replace("._orig_mod", "")
    chunk = _CHUNK.fullmatch(key)
    number = int(chunk[1]) if chunk else 0
    key = chunk[2] if chunk else key.removeprefix("model.")
    while key.startswith("module."):
        key = key.removeprefix("module.")
    name, half = _translated(key)
    layer = _LAYER.fullmatch(name)
    if layer is None:
        return Name(name, None, number, half)
    return Name(layer[2], int(layer[1]), number, half)


def _translated(key: str) -> tuple[str, int | None]:
    for pattern, replacement in _PRE_MCORE:
        if pattern.fullmatch(key):
            key = pattern.sub(replacement, key)
            break
    up = _UP.fullmatch(key)
    if up:
        return f"{up[1]}.linear_fc1.{up[2]}", 1
    for old, new in _MODULES:
        key = key.replace(old, new)
    grouped = _GROUPED.fullmatch(key)
    if grouped:
        return f"{grouped[1]}.local_experts.{grouped[4]}.{grouped[2]}.{grouped[3]}", None
    shared = _SHARED.fullmatch(key)
    return (f"{shared[1]}.shared_experts.{shared[2]}", None) if shared else (key, None)
