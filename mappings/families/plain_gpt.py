"""NeMo 2's plain ``GPTConfig`` for decoders with a gated SiLU and rotary embeddings that have no config class
of their own in NeMo: it builds them from megatron-core's fields.

Source: nemo/collections/llm/gpt/model/base.py.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from ..hf.fields import Value
from ..nemo2.configs_dense import GPT, SILU, family
from ..nemo2.fields import DECODER, NO_BIASES, Fixed, NemoClasses, NemoRule, with_rules
from ..nemo2.fields_moe import SetTo

_DEFAULTS: Final = MappingProxyType({"GPTConfig": family(GPT, rotary_interleaved=False, no_rope_freq=None)})


def plain_gpt(
    *rules: NemoRule, marks: tuple[tuple[str, Value], ...], normalization: str = "RMSNorm"
) -> NemoClasses:
    """The classes of an architecture whose own fields are ``rules``, told from others by ``marks``."""
    return NemoClasses(
        module="nemo.collections.llm.gpt.model.base",
        model="GPTModel",
        config="GPTConfig",
        defaults=_DEFAULTS,
        rules=with_rules(
            DECODER,
            NO_BIASES,
            Fixed("position_embedding_type", "rope", written=True),
            Fixed("normalization", normalization, written=True),
            Fixed("activation_func", SILU, written=True),
            SetTo("hidden_dropout", 0.0),
            *rules,
        ),
        marks=(
            ("position_embedding_type", "rope"),
            ("normalization", normalization),
            ("gated_linear_unit", True),
            ("num_moe_experts", False),
            *marks,
        ),
    )
