"""Config rules of Baichuan: what its released code does without a key of config.json for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ...errors import UnsupportedConfig
from ..hf.fields import Value, check_kind

#: vocab_size by which the released code of Baichuan 2 is told from that of Baichuan
BAICHUAN2_VOCABULARY: Final = 125_696


@dataclass(frozen=True, slots=True)
class BaichuanLimits:
    """``max_position_embeddings`` <-> ``seq_length``, and what Baichuan's code does without a key for it:
    models of 13B, which have no such key, use ALiBi, and Baichuan 2 normalises its output layer, which
    ``unit_rows`` says: False where that remains to be done, True where it is."""

    hf_keys = frozenset({"max_position_embeddings", "model_max_length"})
    fields = frozenset({"seq_length", "unit_rows"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        if hf.get("max_position_embeddings") is None or hf.get("num_hidden_layers") == 40:
            raise UnsupportedConfig(
                "config.json: is a Baichuan 13B (no max_position_embeddings, or 40 layers), whose ALiBi "
                "positions are not supported, only the rotary embedding of the 7B models"
            )
        config["unit_rows"] = False if hf.get("vocab_size") == BAICHUAN2_VOCABULARY else None
        config["seq_length"] = check_kind("max_position_embeddings", hf["max_position_embeddings"], int)

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        if config["vocab_size"] == BAICHUAN2_VOCABULARY and config.get("unit_rows") is not True:
            raise UnsupportedConfig(
                f"vocab_size={BAICHUAN2_VOCABULARY} is a Baichuan 2, whose code in a Hugging Face directory "
                "divides each row of the output layer by its length (NormHead), which NeMo's does not; only "
                "a model whose rows this program has normalised can be written"
            )
        hf["max_position_embeddings"] = hf["model_max_length"] = config["seq_length"]


@dataclass(frozen=True, slots=True)
class PlainOutput:
    """NeMo's output layer takes its rows as they are: ``unit_rows`` must not be False."""

    names = frozenset[str]()

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        config["unit_rows"] = None

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        if config.get("unit_rows") is False:
            raise UnsupportedConfig(
                f"config.json: vocab_size={BAICHUAN2_VOCABULARY} is a Baichuan 2, whose output layer divides "
                "each of its rows by its length; NeMo has no such layer"
            )
