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

from nemoconv.errors import NemoconvError, UsageError

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
        "hf": "nemoconv.converters.hf:HFConverter",
        "nemo2": "nemoconv.converters.nemo2:NeMo2Converter",
        "nemo": "nemoconv.converters.nemo1:NeMo1Converter",
        "megatron": "nemoconv.converters.megatron:MegatronConverter",
        "safetensors": "nemoconv.converters.safetensors_plain:SafetensorsConverter",
        "onnx": "nemoconv.converters.onnx:OnnxConverter",
        "peft": "nemoconv.converters.peft:PeftConverter",
    },
    "mappings": {
        "llama": "nemoconv.mappings.llama:TABLE",
        "parakeet_ctc": "nemoconv.mappings.parakeet_ctc:TABLE",
        "parakeet_rnnt": "nemoconv.mappings.parakeet_rnnt:TABLE",
        "parakeet_tdt": "nemoconv.mappings.parakeet_tdt:TABLE",
        "canary": "nemoconv.mappings.canary:TABLE",
        "mistral": "nemoconv.mappings.mistral:TABLE",
        "qwen2": "nemoconv.mappings.qwen2:TABLE",
        "qwen3": "nemoconv.mappings.qwen3:TABLE",
        "phi3": "nemoconv.mappings.phi3:TABLE",
        "gpt2": "nemoconv.mappings.gpt2:TABLE",
        "gpt_bigcode": "nemoconv.mappings.gpt_bigcode:TABLE",
        "gpt_neox": "nemoconv.mappings.gpt_neox:TABLE",
        "chatglm": "nemoconv.mappings.chatglm:TABLE",
        "glm": "nemoconv.mappings.glm:TABLE",
        "baichuan": "nemoconv.mappings.baichuan:TABLE",
        "nemotron-nas": "nemoconv.mappings.nemotron_nas:TABLE",
        "bert": "nemoconv.mappings.bert:TABLE",
        "megatron-bert": "nemoconv.mappings.megatron_bert:TABLE",
        "megatron-bert:MegatronBertForPreTraining": "nemoconv.mappings.megatron_bert:PRETRAINING",
        "bert:BertForMaskedLM": "nemoconv.mappings.bert:MASKED_LM",
        "bert:BertForPreTraining": "nemoconv.mappings.bert:PRETRAINING",
        "llama_bidirec": "nemoconv.mappings.llama_bidirec:TABLE",
        "llama_bidirec:LlamaBidirectionalForSequenceClassification": (
            "nemoconv.mappings.llama_bidirec:RERANKER"
        ),
        "starcoder2": "nemoconv.mappings.starcoder2:TABLE",
        "smollm3": "nemoconv.mappings.smollm3:TABLE",
        "stablelm": "nemoconv.mappings.stablelm:TABLE",
        "seed_oss": "nemoconv.mappings.seed_oss:TABLE",
        "ernie4_5": "nemoconv.mappings.ernie4_5:TABLE",
        "glm4": "nemoconv.mappings.glm4:TABLE",
        "mimo": "nemoconv.mappings.mimo:TABLE",
        "t5": "nemoconv.mappings.t5:TABLE",
        "mt5": "nemoconv.mappings.t5:MT5",
        "nemotron": "nemoconv.mappings.nemotron:TABLE",
        "falcon": "nemoconv.mappings.falcon:TABLE",
        "gemma": "nemoconv.mappings.gemma:TABLE",
        "gemma2": "nemoconv.mappings.gemma2:TABLE",
        "gemma3_text": "nemoconv.mappings.gemma3_text:TABLE",
        "deepseek_v2": "nemoconv.mappings.deepseek_v2:TABLE",
        "deepseek_v3": "nemoconv.mappings.deepseek_v3:TABLE",
        "gpt_oss": "nemoconv.mappings.gpt_oss:TABLE",
        "llama4_text": "nemoconv.mappings.llama4_text:TABLE",
        "glm4_moe": "nemoconv.mappings.glm4_moe:TABLE",
        "glm4_moe_lite": "nemoconv.mappings.glm4_moe_lite:TABLE",
        "kimi_k2": "nemoconv.mappings.deepseek_v3:TABLE",
        "llava": "nemoconv.mappings.llava:TABLE",
        "qwen2_vl": "nemoconv.mappings.qwen2_vl:TABLE",
        "qwen2_5_vl": "nemoconv.mappings.qwen2_5_vl:TABLE",
        "mamba2": "nemoconv.mappings.mamba2:TABLE",
        "nemotron_h": "nemoconv.mappings.nemotron_h:TABLE",
        "mixtral": "nemoconv.mappings.mixtral:TABLE",
        "qwen3_moe": "nemoconv.mappings.qwen3_moe:TABLE",
        "qwen2_moe": "nemoconv.mappings.qwen2_moe:TABLE",
    },
}
