"""Old names for NeMo 2's config classes of Llama 4."""

from __future__ import annotations

from . import classes
from .symbols import LLAMA4_SPEC

SPEC = LLAMA4_SPEC
LLAMA4_DEFAULTS = classes.family("Llama4Config")
