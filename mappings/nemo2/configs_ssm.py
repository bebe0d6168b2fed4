"""What NeMo's classes of state-space models take for fields that are not set, and rules for their fields.

Read off nemo-toolkit 2.5.3 (nemo/collections/llm/gpt/model/ssm.py). ``OFF`` and ``INERT`` of
:mod:`nemoconv.mappings.nemo2.configs` say the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from ...errors import UnsupportedConfig
from ...formats.text.fiddle import Symbol
from ..hf.fields import Value
from .fields import Count, Fixed, NemoRule, ParamsDtype, Same
from .fields_moe import Harmless

Defaults = Mapping[str, object]
SQUARED_RELU: Final = Symbol("megatron.core.activations", "squared_relu")
_SSM: Final[Defaults] = {
    "num_layers": 2,
    "hidden_size": 0,
    "ffn_hidden_size": None,
    "num_attention_heads": 1,
    "num_query_groups": None,
    "kv_channels": None,
    "vocab_size": None,
    "make_vocab_size_divisible_by": 128,
    "seq_length": 8192,
    "position_embedding_type": "none",
    "normalization": "RMSNorm",
    "layernorm_epsilon": 1e-05,
    "gated_linear_unit": False,
    "add_bias_linear": False,
    "share_embeddings_and_output_weights": False,
    "init_method_std": 0.02,
    "attention_dropout": 0.0,
    "bf16": True,
    "fp16": False,
    "params_dtype": Symbol("torch", "bfloat16"),
    "generation_config": None,
    "is_hybrid_model": False,
    "hybrid_override_pattern": None,
    "mamba_num_heads": None,
    "mamba_head_dim": 64,
    "mamba_state_dim": 128,
    "mamba_num_groups": 8,
}


def _class(*parents: Defaults, **changes: object) -> Defaults:
    merged: dict[str, object] = dict(_SSM)
    for parent in parents:
        merged |= parent
    return MappingProxyType(merged | changes)


def _mamba(layers: int, hidden: int) -> Defaults:
    pattern = "M" * layers
    return _class(
        hybrid_override_pattern=pattern,
        num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=hidden,
        mamba_num_groups=1,
        seq_length=2048,
        make_vocab_size_divisible_by=16,
    )


MAMBA_DEFAULTS: Final[Mapping[str, Defaults]] = MappingProxyType(
    {
        "SSMConfig": _class(),
        "BaseMambaConfig130M": _mamba(24, 768),
        "BaseMambaConfig370M": _mamba(48, 1024),
        "BaseMambaConfig780M": _mamba(48, 1536),
        "BaseMambaConfig1_3B": _mamba(48, 2048),
        "BaseMambaConfig2_7B": _mamba(64, 2560),
    }
)
_NEMOTRON_H = _class(
    num_query_groups=8, vocab_size=131072, is_hybrid_model=True, activation_func=SQUARED_RELU
)
#: blocks of layers of the released models, by how many of each
_SHORT = "M-M-M-M*-" + "M-M-M-M-M*-" * 3 + "M-M-M-M-M-"


def _nemotron(pattern: str, hidden: int, ffn: int, heads: int, **rest: object) -> Defaults:
    return _class(
        _NEMOTRON_H,
        hybrid_override_pattern=pattern,
        num_layers=len(pattern),
        hidden_size=hidden,
        ffn_hidden_size=ffn,
        num_attention_heads=heads,
        **rest,
    )


NEMOTRON_H_DEFAULTS: Final[Mapping[str, Defaults]] = MappingProxyType(
    {
        "NemotronHConfigBase": _NEMOTRON_H,
        "NemotronHConfig4B": _nemotron(_SHORT, 3072, 12288, 32, mamba_num_heads=112, kv_channels=128),
        "NemotronHConfig8B": _nemotron(_SHORT, 4096, 21504, 32),
        "NemotronHConfig47B": _nemotron(
            "M-M-M-M-M-M-M-M-M*-M-M-M-M-M-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-M-M---MM---M-M*-M-M-M-M-M-",
            8192,
            30720,
            64,
            mamba_state_dim=256,
        ),
        "NemotronHConfig56B": _nemotron(
            "M-M-M-M*-" + "M-M-M-M-M*-" * 4 + "M-M-M-M-M*-M-M-M-M-" + "M*-M-M-M-M-" * 4 + "M-",
            8192,
            32768,
            64,
            mamba_state_dim=256,
        ),
        "NemotronNano9Bv2": _nemotron(
            "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-",
            4480,
            15680,
            40,
            mamba_num_heads=128,
            mamba_head_dim=80,
            kv_channels=128,
        ),
        "NemotronNano12Bv2": _nemotron(
            "M-M-M-M*-" + "M-M-M-M*-" * 5 + "M-M-M-M-",
            5120,
            20480,
            40,
            mamba_num_heads=128,
            mamba_head_dim=80,
            kv_channels=128,
        ),
    }
)


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
    Fixed("layernorm_epsilon", 1e-05, written=True),
    Fixed("position_embedding_type", "none"),
    Fixed("normalization", "RMSNorm"),
    Fixed("gated_linear_unit", False),
    Fixed("add_bias_linear", False),
    Harmless(
        frozenset(
            """hybrid_attention_ratio hybrid_mlp_ratio tokenizer_library tokenizer_name mapping_type
            vocab_file tokenizer_model_path get_attention_mask_from_fusion post_process pre_process
            rotary_percent rotary_base mamba_stack_spec first_last_layers_bf16""".split()
        )
    ),
)
