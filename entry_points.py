"""Registries of converters and mapping tables: what is built in, and what entry points add.

An entry is loaded when it is asked for, so one broken plug-in stops nobody else. Only installed
packages are ever imported, never anything that a checkpoint names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from .errors import NemoconvError, UsageError

#: the origin of what this package itself registers
BUILT_IN = "nemoconv"


@dataclass(frozen=True, slots=True)
class Entry:
    """Something registered under a name: where it is from and where its object lies."""

    name: str
    origin: str
    target: str

    def load(self) -> Any:
        """Import and return the object. Raises NemoconvError naming the plug-in that fails."""
        module, _, attribute = self.target.partition(":")
        try:
            return getattr(import_module(module), attribute)
        except Exception as error:
            raise NemoconvError(
                f"the plug-in {self.name!r} of package {self.origin!r} cannot be loaded: "
                f"{type(error).__name__}: {error}",
                hint=f"repair or uninstall {self.origin}",
            ) from error


@cache
def entries(group: str) -> Mapping[str, Entry]:
    """Everything registered in ``nemoconv.<group>``, built in first.

    Raises UsageError when two packages claim one name.
    """
    found = {name: Entry(name, BUILT_IN, target) for name, target in _BUILT_IN[group].items()}
    from importlib.metadata import entry_points

    for point in entry_points(group=f"nemoconv.{group}"):
        origin = point.dist.name if point.dist else "unknown"
        if point.name in found and found[point.name].target != point.value:
            raise UsageError(
                f"{group[:-1]} {point.name!r} is claimed by {found[point.name].origin!r} and {origin!r}",
                hint="uninstall one of them",
            )
        found[point.name] = Entry(point.name, origin, point.value)
    return found


_BUILT_IN: Mapping[str, Mapping[str, str]] = {
    "converters": {
        "hf": "nemoconv.converters.hf.format:HFFormat",
        "nemo2": "nemoconv.converters.nemo2.format:NeMo2Format",
        "nemo": "nemoconv.converters.nemo1.format:NeMo1Format",
        "megatron": "nemoconv.converters.megatron.format:MegatronFormat",
        "safetensors": "nemoconv.converters.safetensors:SafetensorsFormat",
        "onnx": "nemoconv.converters.onnx.format:OnnxFormat",
        "peft": "nemoconv.converters.adapters.format:PeftFormat",
    },
    "mappings": {
        "llama": "nemoconv.mappings.models.llama:LLAMA",
        "parakeet_ctc": "nemoconv.mappings.models.parakeet_ctc:PARAKEET_CTC",
        "parakeet_rnnt": "nemoconv.mappings.models.parakeet_rnnt:PARAKEET_RNNT",
        "parakeet_tdt": "nemoconv.mappings.models.parakeet_tdt:PARAKEET_TDT",
        "canary": "nemoconv.mappings.models.canary:CANARY",
        "mistral": "nemoconv.mappings.models.mistral:MISTRAL",
        "qwen2": "nemoconv.mappings.models.qwen2:QWEN2",
        "qwen3": "nemoconv.mappings.models.qwen3:QWEN3",
        "phi3": "nemoconv.mappings.models.phi3:PHI3",
        "gpt2": "nemoconv.mappings.models.gpt2:GPT2",
        "gpt_bigcode": "nemoconv.mappings.models.gpt_bigcode:GPT_BIGCODE",
        "gpt_neox": "nemoconv.mappings.models.gpt_neox:GPT_NEOX",
        "chatglm": "nemoconv.mappings.models.chatglm:CHATGLM",
        "glm": "nemoconv.mappings.models.glm:GLM",
        "baichuan": "nemoconv.mappings.models.baichuan:BAICHUAN",
        "nemotron-nas": "nemoconv.mappings.models.nemotron_nas:NEMOTRON_NAS",
        "bert": "nemoconv.mappings.models.bert:BERT",
        "megatron-bert": "nemoconv.mappings.models.megatron_bert:MEGATRON_BERT",
        "megatron-bert:MegatronBertForPreTraining": "nemoconv.mappings.models.megatron_bert:PRETRAINING",
        "bert:BertForMaskedLM": "nemoconv.mappings.models.bert:MASKED_LM",
        "bert:BertForPreTraining": "nemoconv.mappings.models.bert:PRETRAINING",
        "llama_bidirec": "nemoconv.mappings.models.llama_bidirec:LLAMA_BIDIREC",
        "llama_bidirec:LlamaBidirectionalForSequenceClassification": (
            "nemoconv.mappings.models.llama_bidirec:RERANKER"
        ),
        "starcoder2": "nemoconv.mappings.models.starcoder2:STARCODER2",
        "smollm3": "nemoconv.mappings.models.smollm3:SMOLLM3",
        "stablelm": "nemoconv.mappings.models.stablelm:STABLELM",
        "seed_oss": "nemoconv.mappings.models.seed_oss:SEED_OSS",
        "ernie4_5": "nemoconv.mappings.models.ernie4_5:ERNIE4_5",
        "glm4": "nemoconv.mappings.models.glm4:GLM4",
        "mimo": "nemoconv.mappings.models.mimo:MIMO",
        "t5": "nemoconv.mappings.models.t5:T5",
        "mt5": "nemoconv.mappings.models.mt5:MT5",
        "nemotron": "nemoconv.mappings.models.nemotron:NEMOTRON",
        "falcon": "nemoconv.mappings.models.falcon:FALCON",
        "gemma": "nemoconv.mappings.models.gemma:GEMMA",
        "gemma2": "nemoconv.mappings.models.gemma2:GEMMA2",
        "gemma3_text": "nemoconv.mappings.models.gemma3_text:GEMMA3_TEXT",
        "deepseek_v2": "nemoconv.mappings.models.deepseek_v2:DEEPSEEK_V2",
        "deepseek_v3": "nemoconv.mappings.models.deepseek_v3:DEEPSEEK_V3",
        "gpt_oss": "nemoconv.mappings.models.gpt_oss:GPT_OSS",
        "llama4_text": "nemoconv.mappings.models.llama4_text:LLAMA4_TEXT",
        "glm4_moe": "nemoconv.mappings.models.glm4_moe:GLM4_MOE",
        "glm4_moe_lite": "nemoconv.mappings.models.glm4_moe_lite:GLM4_MOE_LITE",
        "kimi_k2": "nemoconv.mappings.models.deepseek_v3:DEEPSEEK_V3",
        "llava": "nemoconv.mappings.models.llava:LLAVA",
        "qwen2_vl": "nemoconv.mappings.models.qwen2_vl:QWEN2_VL",
        "qwen2_5_vl": "nemoconv.mappings.models.qwen2_5_vl:QWEN2_5_VL",
        "mamba2": "nemoconv.mappings.models.mamba2:MAMBA2",
        "nemotron_h": "nemoconv.mappings.models.nemotron_h:NEMOTRON_H",
        "mixtral": "nemoconv.mappings.models.mixtral:MIXTRAL",
        "qwen3_moe": "nemoconv.mappings.models.qwen3_moe:QWEN3_MOE",
        "qwen2_moe": "nemoconv.mappings.models.qwen2_moe:QWEN2_MOE",
    },
}
