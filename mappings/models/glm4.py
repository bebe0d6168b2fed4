"""GLM-4-0414 and GLM-Z1: a ``Glm4ForCausalLM``, a GLM that also normalises what attention and MLP give.

NeMo 2 has no class for it, but layers with four norms: those of its Gemma 2. A ``GPTModel`` with a
``Gemma2Config`` builds them without what makes a Gemma 2 of them (soft caps, windows, norms around zero,
scaled embeddings: ``Gemma2Model`` adds the last). The norms after attention and MLP take 1e-05 for their
epsilon, whatever the config says, as the released models do.

Source: transformers/models/glm4, nemo/collections/llm/gpt/model/gemma2.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ...errors import UnsupportedConfig
from ..blocks.attention import Attention
from ..blocks.place import There
from ..hf.fields import Value
from ..llama_like import llama_like
from ..nemo2.entry import Nemo2
from ..nemo2.fields import NemoFixed, text
from ..nemo2.symbols import GEMMA2_SPEC
from .chatglm import BLOCKS
from .glm import CONFIG, DEFAULTS, NAMES


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


OFF = ("window_size", "attn_logit_softcapping", "final_logit_softcapping")

GLM4 = llama_like(
    "glm4",
    "Glm4ForCausalLM",
    names={
        **NAMES,
        "attention_output_norm": "post_self_attn_layernorm",
        "mlp_output_norm": "post_mlp_layernorm",
    },
    blocks=replace(BLOCKS, attention=Attention(bias=There((("add_qkv_bias", True),)), stateless=True)),
    defaults=DEFAULTS,
    config=CONFIG,
    nemo2=Nemo2(
        "nemo.collections.llm.gpt.model.gemma2",
        "GPTModel",
        "Gemma2Config",
        (
            *(NemoFixed(name, None, written=True) for name in OFF),
            NemoFixed("layernorm_zero_centered_gamma", False, written=True),
            NemoFixed("transformer_layer_spec", GEMMA2_SPEC),
            HeadScale(),
            PostNormEpsilon(1e-5),
        ),
    ),
    proofs=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits, with stand-ins for NeMo's layers",
        "real NeMo load",
        "real NeMo save, by hand",
    ),
)
