"""What NeMo's layers with norms after attention and MLP ask of a model that is no Gemma."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import UnsupportedConfig
from ..hf.fields import Value
from ..nemo2.fields import text


@dataclass(frozen=True, slots=True)
class HeadScale:
    """``query_pre_attn_scalar``, whose root divides the scores, must be the size of a head."""

    names = frozenset({"query_pre_attn_scalar"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        found = fields["query_pre_attn_scalar"]
        if found != config["kv_channels"]:
            raise UnsupportedConfig(
                f"the NeMo config says query_pre_attn_scalar={text(found)}, which config.json of this "
                f"architecture cannot say: only kv_channels={config['kv_channels']}"
            )

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        fields["query_pre_attn_scalar"] = config["kv_channels"]


@dataclass(frozen=True, slots=True)
class PostNormEpsilon:
    """``layernorm_epsilon`` must be what the norms after attention and MLP take whatever it says.

    Source: nemo/collections/llm/gpt/model/gemma2.py (``TENorm(config, output_size)``), and the default of
    ``TENorm`` in megatron/core/extensions/transformer_engine.py.
    """

    value: float
    names = frozenset({"layernorm_epsilon"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        config["layernorm_epsilon"] = self._checked(fields["layernorm_epsilon"], "the NeMo config says ")

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        fields["layernorm_epsilon"] = self._checked(
            config["layernorm_epsilon"], "config.json: rms_norm_eps, "
        )

    def _checked(self, value: Value, where: str) -> float:
        if value != self.value:
            raise UnsupportedConfig(
                f"{where}layernorm_epsilon={text(value)}; NeMo's norms after attention and MLP have "
                f"{self.value} and no field changes it, so only that can be converted"
            )
        return self.value
