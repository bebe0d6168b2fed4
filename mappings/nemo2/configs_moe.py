"""Old names for NeMo 2's config classes of mixtures of experts."""

from __future__ import annotations

from . import classes
from .classes import Defaults
from .configs_dense import family


def config_class(*parents: Defaults, **changes: object) -> Defaults:
    """The defaults of a class that changes those of its parents, and of GPTConfig."""
    return family(classes.defaults("GPTConfig"), *parents, **changes)


MIXTRAL_DEFAULTS = classes.family("MixtralConfig")
#: NeMo has no class for Qwen2-MoE; Qwen2Config has all the fields
QWEN2_MOE_DEFAULTS = classes.family("Qwen2Config")
QWEN3_MOE_DEFAULTS = classes.family("Qwen3MoEConfig")
#: a megatron-core before 0.14 calls yarn's original length max_position_embeddings: unset, it may be either
DEEPSEEK_DEFAULTS = classes.family("DeepSeekConfig", original_max_position_embeddings=None)
