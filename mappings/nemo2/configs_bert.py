"""Old names for NeMo 2's config classes for BERT."""

from __future__ import annotations

from . import classes
from .symbols import BERT_SPEC

__all__ = ["BERT_DEFAULTS", "BERT_SPEC"]

BERT_DEFAULTS = classes.family("HuggingFaceBertConfig")
