"""Tokenizer files that both generations of transformers load.

NeMo 2 runs on transformers 4. What transformers 5 writes into tokenizer_config.json has two spellings
that 4 stops at: the class ``TokenizersBackend`` and ``extra_special_tokens`` as a list. Both have an older
spelling that 5 still reads (transformers/tokenization_utils_base.py of 4.53 and 5.23).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ...errors import CorruptCheckpoint, UnsupportedError
from ...formats import sentencepiece
from ...formats.text import plain_json
from ...stores.files import MAX_SMALL_FILE, SourceFile

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


def json_vocabulary_size(file: SourceFile) -> int | None:
    """How many tokens a ``tokenizer.json`` has, None for one that numbers none."""
    tokenizer = plain_json.loads_object(file.pread(file.size, 0), file.path, max_bytes=MAX_SMALL_FILE)
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens")
    entries = model.get("vocab") if isinstance(model, dict) else None
    ids = list(entries.values()) if isinstance(entries, dict) else list(range(len(entries or ())))
    if isinstance(added, list):
        ids += [token.get("id") for token in added if isinstance(token, dict)]
    numbers = [number for number in ids if isinstance(number, int)]
    return max(numbers) + 1 if numbers else None


def vocabulary_size(files: Mapping[str, SourceFile]) -> int | None:
    """How many tokens a tokenizer has, from ``tokenizer.json`` or SentencePiece's ``tokenizer.model``;
    None where neither is there."""
    if (file := files.get("tokenizer.json")) is not None:
        return json_vocabulary_size(file)
    if (file := files.get("tokenizer.model")) is not None and file.size <= sentencepiece.MAX_BYTES:
        try:
            return len(sentencepiece.loads(file.pread(file.size, 0), file.path).pieces)
        except (CorruptCheckpoint, UnsupportedError):  # a tokenizer of another kind under that name
            return None
    return None
