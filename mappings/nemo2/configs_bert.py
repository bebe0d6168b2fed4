"""Defaults of NeMo 2's config classes for BERT: data only.

Read off the dataclasses of nemo-toolkit 2.5.3 (nemo/collections/llm/bert/model, base.py and bert.py).
They have no ``vocab_size``: it is the tokenizer's, rounded up to ``make_vocab_size_divisible_by`` times TP.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ...formats.text.fiddle import Symbol
from .configs_dense import GPT, Defaults, family, sized

BERT_SPEC: Final = Symbol("nemo.collections.llm.bert.model.base", "default_layer_spec")

_BERT = family(
    {name: value for name, value in GPT.items() if name not in ("vocab_size", "generation_config")},
    seq_length=512,
    transformer_layer_spec=BERT_SPEC,
    bert_type="huggingface",
    add_pooler=True,
    bert_binary_head=True,
    add_lm_head=True,
    num_tokentypes=None,
    mask_vocab_padding_tokens=False,
)
BERT_DEFAULTS: Final[Mapping[str, Defaults]] = family(
    HuggingFaceBertConfig=_BERT,
    HuggingFaceBertBaseConfig=sized(_BERT, 12, 768, 12, None, 3072),
    HuggingFaceBertLargeConfig=sized(_BERT, 24, 1024, 16, None, 4096),
)  # type: ignore[assignment]
