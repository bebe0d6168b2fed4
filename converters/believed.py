"""What of a manifest is believed when a checkpoint with Megatron's names is read.

It is believed where it describes these tensors, and says what NeMo's own configs have no words for. A config
that somebody changed since then is believed before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from ..formats.text import plain_json
from ..mappings.hf import unowned
from ..mappings.hf.fields import Value
from ..mappings.table import Table
from ..stores.files import SourceFile

#: keys of config.json that generation_config.json repeats, and NeMo's own configs have not
_TOKEN_IDS: Final = ("bos_token_id", "eos_token_id", "pad_token_id")
#: biases that Megatron has all or none of, where some may be only zeros
_BIASES: Final = ("attention_bias", "mlp_bias")


def settle(
    written: Mapping[str, Value] | None,
    table: Table,
    config: dict[str, Value],
    rows: int | None,
    otherwise: Callable[[], int | None],
) -> None:
    """Complete a model config that was read from NeMo's, for a vocabulary that is stored in ``rows`` rows.

    The true vocabulary is the manifest's where the config leaves it open or counts the padding; without a
    manifest what ``otherwise`` says.
    """
    told: Mapping[str, Value] = written["model_config"] if written is not None else {}
    if written is not None and rows is not None and written.get("padded_vocab_size") == rows:
        true = told.get("vocab_size")
        if config["vocab_size"] in (rows, None) and isinstance(true, int) and 0 < true <= rows:
            config["vocab_size"] = true
        if table.normalized_head and told.get("unit_rows") is True:
            config["unit_rows"] = True
        biases = {key: told.get(key) is True for key in _BIASES}
        if config.get("add_bias_linear") and "mlp_bias" in config and any(biases.values()):
            config |= biases
    if config["vocab_size"] is None:
        config["vocab_size"] = otherwise()
    for key, usual in table.manifest_fields:
        value = told.get(key)
        config[key] = value if type(value) is type(usual) else usual


def inert_keys(
    written: Mapping[str, Value] | None, generation: SourceFile | None, table: Table
) -> dict[str, Value]:
    """Keys of config.json that do not enter the mathematics: those that generation_config.json repeats, and
    what the manifest kept."""
    inert: dict[str, Value] = {}
    if generation is not None:
        found = plain_json.loads_object(generation.pread(generation.size, 0), generation.path)
        inert = {key: found[key] for key in _TOKEN_IDS if key in found}
    kept: Mapping[str, Value] = written["inert_config"] if written is not None else {}
    return inert | unowned.carried(kept, kept, table.model_type)
