"""What the state dicts of Megatron models in ``.nemo`` files call their tensors, in our tables' names.

NeMo has had two implementations: its own (``model.language_model.encoder.layers.0.self_attention.
query_key_value``) and megatron-core's (``model.decoder.layers.0.self_attention.linear_qkv``). Wrappers add
``module.`` (``megatron_amp_O2``) or ``_orig_mod.`` (torch.compile). Source: nlp_overrides.py,
``modify_state_dict``, and megatron/gpt_model.py of NeMo 1.0 to 2.4.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from ...mappings.nemo1.dialects import GPT, Dialect

#: the second matrix of a gated MLP that is not fused (``activation: swiglu``, not ``fast-swiglu``)
_UP: Final = re.compile(r"(.+\.mlp)\.dense_h_to_4h_2\.(.+)")
_LAYER: Final = re.compile(r"(decoder|encoder)\.layers\.(\d+)\.(.+)")
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
    ``half`` is 0 or 1 for one of two matrices that a table keeps as one, gate and up; ``stack`` the module
    that holds the layers."""

    text: str
    layer: int | None
    chunk: int = 0
    half: int | None = None
    stack: str = "decoder"

    def at(self, layer: int | None) -> str:
        """The whole name, for the layer of that number in the model."""
        return self.text if layer is None else f"{self.stack}.layers.{layer}.{self.text}"


def parse(key: str, dialect: Dialect = GPT) -> Name:
    """The tensor that a key of a state dict is, as far as keys tell."""
    key = key.replace("._orig_mod", "")
    chunk = _CHUNK.fullmatch(key)
    number = int(chunk[1]) if chunk else 0
    key = chunk[2] if chunk else key.removeprefix(dialect.prefix)
    while key.startswith("module."):
        key = key.removeprefix("module.")
    up = _UP.fullmatch(key)
    name = _experts(dialect.read(f"{up[1]}.dense_h_to_4h.{up[2]}" if up else key))
    half = 1 if up else None
    layer = _LAYER.fullmatch(name)
    if layer is None or layer[1] != dialect.stack:
        return Name(name, None, number, half)
    return Name(layer[3], int(layer[2]), number, half, layer[1])


def _experts(name: str) -> str:
    grouped = _GROUPED.fullmatch(name)
    if grouped:
        return f"{grouped[1]}.local_experts.{grouped[4]}.{grouped[2]}.{grouped[3]}"
    shared = _SHARED.fullmatch(name)
    return f"{shared[1]}.shared_experts.{shared[2]}" if shared else name
