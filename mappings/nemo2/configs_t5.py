"""Old names for NeMo 2's config classes of T5."""

from __future__ import annotations

from . import classes

T5_DEFAULTS = classes.family("T5Config")
