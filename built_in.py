"""Where the built-in architectures lie. Made by nemoconv.mappings.indexing: do not edit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

#: by model_type: module and attribute
ARCHITECTURES: Final[Mapping[str, str]] = {
    "baichuan": "nemoconv.mappings.models.baichuan:BAICHUAN",
    "bert": "nemoconv.mappings.models.bert:BERT",
    "bert:BertForMaskedLM": "nemoconv.mappings.models.bert:MASKED_LM",
    "bert:BertForPreTraining": "nemoconv.mappings.models.bert:PRETRAINING",
    "canary": "nemoconv.mappings.models.canary:CANARY",
    "chatglm": "nemoconv.mappings.models.chatglm:CHATGLM",
    "deepseek_v2": "nemoconv.mappings.models.deepseek_v2:DEEPSEEK_V2",
    "deepseek_v3": "nemoconv.mappings.models.deepseek_v3:DEEPSEEK_V3",
    "ernie4_5": "nemoconv.mappings.models.ernie4_5:ERNIE4_5",
    "falcon": "nemoconv.mappings.models.falcon:FALCON",
    "gemma": "nemoconv.mappings.models.gemma:GEMMA",
    "gemma2": "nemoconv.mappings.models.gemma2:GEMMA2",
    "gemma3_text": "nemoconv.mappings.models.gemma3_text:GEMMA3_TEXT",
    "glm": "nemoconv.mappings.models.glm:GLM",
    "glm4": "nemoconv.mappings.models.glm4:GLM4",
    "glm4_moe": "nemoconv.mappings.models.glm4_moe:GLM4_MOE",
    "glm4_moe_lite": "nemoconv.mappings.models.glm4_moe_lite:GLM4_MOE_LITE",
    "gpt2": "nemoconv.mappings.models.gpt2:GPT2",
    "gpt_bigcode": "nemoconv.mappings.models.gpt_bigcode:GPT_BIGCODE",
    "gpt_neox": "nemoconv.mappings.models.gpt_neox:GPT_NEOX",
    "gpt_oss": "nemoconv.mappings.models.gpt_oss:GPT_OSS",
    "kimi_k2": "nemoconv.mappings.models.deepseek_v3:DEEPSEEK_V3",
    "llama": "nemoconv.mappings.models.llama:LLAMA",
    "llama4_text": "nemoconv.mappings.models.llama4_text:LLAMA4_TEXT",
    "llama_bidirec": "nemoconv.mappings.models.llama_bidirec:LLAMA_BIDIREC",
    "llama_bidirec:LlamaBidirectionalForSequenceClassification": (
        "nemoconv.mappings.models.llama_bidirec:RERANKER"
    ),
    "llava": "nemoconv.mappings.models.llava:LLAVA",
    "mamba2": "nemoconv.mappings.models.mamba2:MAMBA2",
    "megatron-bert": "nemoconv.mappings.models.megatron_bert:MEGATRON_BERT",
    "megatron-bert:MegatronBertForPreTraining": "nemoconv.mappings.models.megatron_bert:PRETRAINING",
    "mimo": "nemoconv.mappings.models.mimo:MIMO",
    "mistral": "nemoconv.mappings.models.mistral:MISTRAL",
    "mixtral": "nemoconv.mappings.models.mixtral:MIXTRAL",
    "mt5": "nemoconv.mappings.models.mt5:MT5",
    "nemotron": "nemoconv.mappings.models.nemotron:NEMOTRON",
    "nemotron-nas": "nemoconv.mappings.models.nemotron_nas:NEMOTRON_NAS",
    "nemotron_h": "nemoconv.mappings.models.nemotron_h:NEMOTRON_H",
    "parakeet_ctc": "nemoconv.mappings.models.parakeet_ctc:PARAKEET_CTC",
    "parakeet_rnnt": "nemoconv.mappings.models.parakeet_rnnt:PARAKEET_RNNT",
    "parakeet_tdt": "nemoconv.mappings.models.parakeet_tdt:PARAKEET_TDT",
    "phi3": "nemoconv.mappings.models.phi3:PHI3",
    "qwen2": "nemoconv.mappings.models.qwen2:QWEN2",
    "qwen2_5_vl": "nemoconv.mappings.models.qwen2_5_vl:QWEN2_5_VL",
    "qwen2_moe": "nemoconv.mappings.models.qwen2_moe:QWEN2_MOE",
    "qwen2_vl": "nemoconv.mappings.models.qwen2_vl:QWEN2_VL",
    "qwen3": "nemoconv.mappings.models.qwen3:QWEN3",
    "qwen3_moe": "nemoconv.mappings.models.qwen3_moe:QWEN3_MOE",
    "seed_oss": "nemoconv.mappings.models.seed_oss:SEED_OSS",
    "smollm3": "nemoconv.mappings.models.smollm3:SMOLLM3",
    "stablelm": "nemoconv.mappings.models.stablelm:STABLELM",
    "starcoder2": "nemoconv.mappings.models.starcoder2:STARCODER2",
    "t5": "nemoconv.mappings.models.t5:T5",
}
#: by the module of NeMo 2's config classes: the architectures that have classes there
NEMO_MODULES: Final[Mapping[str, tuple[str, ...]]] = {
    "nemo.collections.asr.models.aed_multitask_models": ("canary",),
    "nemo.collections.asr.models.ctc_bpe_models": ("parakeet_ctc",),
    "nemo.collections.asr.models.rnnt_bpe_models": (
        "parakeet_rnnt",
        "parakeet_tdt",
    ),
    "nemo.collections.llm.bert.model.bert": (
        "bert",
        "bert:BertForMaskedLM",
        "bert:BertForPreTraining",
    ),
    "nemo.collections.llm.gpt.model.baichuan": ("baichuan",),
    "nemo.collections.llm.gpt.model.base": (
        "ernie4_5",
        "glm4_moe",
        "gpt2",
        "gpt_neox",
        "seed_oss",
        "smollm3",
        "stablelm",
    ),
    "nemo.collections.llm.gpt.model.chatglm": (
        "chatglm",
        "glm",
    ),
    "nemo.collections.llm.gpt.model.deepseek": (
        "deepseek_v2",
        "deepseek_v3",
        "glm4_moe_lite",
        "kimi_k2",
    ),
    "nemo.collections.llm.gpt.model.gemma": ("gemma",),
    "nemo.collections.llm.gpt.model.gemma2": (
        "gemma2",
        "glm4",
    ),
    "nemo.collections.llm.gpt.model.gemma3": ("gemma3_text",),
    "nemo.collections.llm.gpt.model.gpt_oss": ("gpt_oss",),
    "nemo.collections.llm.gpt.model.llama": (
        "llama",
        "llama4_text",
    ),
    "nemo.collections.llm.gpt.model.llama_embedding": ("llama_bidirec",),
    "nemo.collections.llm.gpt.model.llama_nemotron": (
        "llama",
        "nemotron-nas",
    ),
    "nemo.collections.llm.gpt.model.mistral": ("mistral",),
    "nemo.collections.llm.gpt.model.mixtral": ("mixtral",),
    "nemo.collections.llm.gpt.model.nemotron": ("nemotron",),
    "nemo.collections.llm.gpt.model.phi3mini": ("phi3",),
    "nemo.collections.llm.gpt.model.qwen2": (
        "mimo",
        "qwen2",
        "qwen2_moe",
    ),
    "nemo.collections.llm.gpt.model.qwen3": (
        "qwen3",
        "qwen3_moe",
    ),
    "nemo.collections.llm.gpt.model.reranker": ("llama_bidirec:LlamaBidirectionalForSequenceClassification",),
    "nemo.collections.llm.gpt.model.ssm": (
        "mamba2",
        "nemotron_h",
    ),
    "nemo.collections.llm.gpt.model.starcoder": ("gpt_bigcode",),
    "nemo.collections.llm.gpt.model.starcoder2": ("starcoder2",),
    "nemo.collections.llm.t5.model.t5": (
        "mt5",
        "t5",
    ),
    "nemo.collections.vlm.neva.model.llava": ("llava",),
    "nemo.collections.vlm.qwen2vl.model.base": (
        "qwen2_5_vl",
        "qwen2_vl",
    ),
    "nemo.collections.vlm.qwen2vl.model.qwen2vl": (
        "qwen2_5_vl",
        "qwen2_vl",
    ),
}
#: by the family of NeMo 1's model classes: what it can be, the first of those that fit
NEMO_1: Final[Mapping[str, tuple[str, ...]]] = {
    "bert": (
        "bert",
        "bert:BertForMaskedLM",
        "bert:BertForPreTraining",
    ),
    "gpt": (
        "falcon",
        "gemma",
        "gemma2",
        "glm",
        "gpt2",
        "llama",
        "mixtral",
        "nemotron",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "starcoder2",
        "chatglm",
        "gpt_bigcode",
        "gpt_neox",
        "mistral",
        "phi3",
    ),
    "megatron-bert": (
        "megatron-bert",
        "megatron-bert:MegatronBertForPreTraining",
    ),
    "t5": (
        "t5",
        "mt5",
    ),
}
