"""Fields of NeMo 2's config classes of state-space models <-> the model config.

Source: nemo/collections/llm/gpt/model/ssm.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ...errors import UnsupportedConfig
from ..hf.fields import Value
from .fields import Count, NemoFixed, NemoRule, ParamsDtype, Same
from .fields_moe import Harmless


@dataclass(frozen=True, slots=True)
class Pattern:
    """``hybrid_override_pattern``: a letter a layer, of ``known`` ones."""

    known: str
    names = frozenset({"hybrid_override_pattern"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        pattern = fields["hybrid_override_pattern"]
        fits = isinstance(pattern, str) and len(pattern) == config["num_layers"]
        if not fits or set(pattern) - {*self.known}:
            raise UnsupportedConfig(
                f"the NeMo config says hybrid_override_pattern={str(pattern)[:80]!r} with "
                f"{config['num_layers']} layers; only the letters {self.known!r} have a counterpart"
            )
        config["hybrid_override_pattern"] = pattern

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        fields["hybrid_override_pattern"] = config["hybrid_override_pattern"]


@dataclass(frozen=True, slots=True)
class MambaHeads:
    """``mamba_num_heads``: None is as many as twice the hidden size has."""

    names = frozenset({"mamba_num_heads", "mamba_head_dim"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        width, heads = fields["mamba_head_dim"], fields["mamba_num_heads"]
        config["mamba_head_dim"] = width
        config["mamba_num_heads"] = 2 * config["hidden_size"] // width if heads is None else heads

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        fields |= {name: config[name] for name in sorted(self.names)}


#: what both tables' classes hold alike; the norm inside a mixer has this epsilon whatever the config says
SSM: Final[tuple[NemoRule, ...]] = (
    Count("num_layers"),
    Count("hidden_size"),
    Count("seq_length"),
    Count("mamba_state_dim"),
    Count("mamba_num_groups"),
    MambaHeads(),
    Same("vocab_size"),
    Same("init_method_std"),
    Same("share_embeddings_and_output_weights"),
    ParamsDtype(),
    NemoFixed("layernorm_epsilon", 1e-05, written=True),
    NemoFixed("position_embedding_type", "none"),
    NemoFixed("normalization", "RMSNorm"),
    NemoFixed("gated_linear_unit", False),
    NemoFixed("add_bias_linear", False),
    NemoFixed("add_qkv_bias", False),
    Harmless(
        frozenset(
            """hybrid_attention_ratio hybrid_mlp_ratio tokenizer_library tokenizer_name mapping_type
            vocab_file tokenizer_model_path get_attention_mask_from_fusion post_process pre_process
            rotary_percent rotary_base seq_len_interpolation_factor mamba_stack_spec
            first_last_layers_bf16""".split()
        )
    ),
)
