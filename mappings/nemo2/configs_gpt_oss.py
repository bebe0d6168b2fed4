"""Old names for NeMo 2's config classes of gpt-oss."""

from __future__ import annotations

from . import classes
from .symbols import CORE_QUICK_GELU

QUICK_GELU = CORE_QUICK_GELU
GPT_OSS_DEFAULTS = classes.family("GPTOSSConfig")
