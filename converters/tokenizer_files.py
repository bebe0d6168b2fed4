"""Tokenizer files that both generations of transformers load.

NeMo 2 runs on transformers 4. What transformers 5 writes into tokenizer_config.json has two spellings
that 4 stops at: the class ``TokenizersBackend`` and ``extra_special_tokens`` as a list. Both have an older
spelling that 5 still reads (transformers/tokenization_utils_base.py of 4.53 and 5.23).
"""

from __future__ import annotations

from typing import Final

from nemoconv.formats import plain_json

CONFIG: Final = "tokenizer_config.json"


def for_transformers_4(data: bytes, where: str) -> bytes:
    """tokenizer_config.json in the spelling that both generations read; unchanged if it is already."""
    config = plain_json.loads_object(data, where)
    changed = dict(config)
    if config.get("tokenizer_class") == "TokenizersBackend":
        changed["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        more = changed.pop("extra_special_tokens")
        changed.setdefault("additional_special_tokens", more)
    return data if changed == config else plain_json.dumps(changed)
