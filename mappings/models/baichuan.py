"""Baichuan 7B: a ``BaichuanForCausalLM``, whose class came with it: a Llama with q, k, v in one tensor.

Source: modeling_baichuan.py of the released models, nemo/collections/llm/gpt/model/baichuan.py. Two things
have no counterpart in NeMo: the ALiBi of the 13B models, which is refused, and the output layer of
Baichuan 2, which divides each row by its length when it runs (``NormHead``; NeMo's importer copies the rows,
and the model that it writes computes other logits). On request the rows are divided once and for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ...errors import UnsupportedConfig
from ..hf.fields import Unread, Value, check_kind
from ..hf.fields_gpt import AutoMap, PlainHeads
from ..llama_like import llama_like
from ..nemo2.entry import Nemo2
from ..nemo2.fields import NemoFixed

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


BAICHUAN = llama_like(
    "baichuan",
    "BaichuanForCausalLM",
    other_classes=("BaiChuanForCausalLM",),
    names=dict.fromkeys(("query", "key", "value"), "self_attn.W_pack"),
    defaults={"vocab_size": 64000},
    config=(
        BaichuanLimits(),
        PlainHeads(),
        Unread(("gradient_checkpointing", "z_loss_weight")),
        AutoMap(
            "configuration_baichuan.BaichuanConfig",
            "modeling_baichuan.BaichuanForCausalLM",
            ("configuration_baichuan.BaiChuanConfig", "modeling_baichuan.BaiChuanForCausalLM"),
        ),
    ),
    nemo2=Nemo2(
        "nemo.collections.llm.gpt.model.baichuan",
        "Baichuan2Model",
        "Baichuan2Config",
        (NemoFixed("position_embedding_type", "rope", written=True), PlainOutput()),
    ),
    normalized_head=("lm_head.weight",),
    samples=({"max_position_embeddings": 4096},),
    proofs=(
        "bit-equal",
        "logits of transformers' Llama",
        "megatron-core logits",
        "real NeMo import (with a stand-in for the released code), by hand",
    ),
)
