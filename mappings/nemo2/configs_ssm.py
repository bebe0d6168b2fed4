"""Old names for NeMo 2's config classes of state-space models."""

from __future__ import annotations

from . import classes
from .fields_ssm import SSM, Pattern
from .symbols import CORE_SQUARED_RELU

__all__ = ["SSM", "Pattern"]

SQUARED_RELU = CORE_SQUARED_RELU
#: the size of the vocabulary is the tokenizer's, in a field of the model
MAMBA_DEFAULTS = classes.family(
    "SSMConfig",
    without=("NemotronHConfigBase", "NVIDIAMambaConfig8B", "NVIDIAMambaHybridConfig8B"),
    vocab_size=None,
)
NEMOTRON_H_DEFAULTS = classes.family("NemotronHConfigBase")
