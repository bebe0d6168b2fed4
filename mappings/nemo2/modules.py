"""Which built-in architectures have config classes in which of NeMo's modules.

It repeats what the tables say, so that reading one NeMo 2 config imports the few tables that may fit and
not all; a test holds it to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

NEMO_MODULES: Final[Mapping[str, tuple[str, ...]]] = {
    "nemo.collections.asr.models.aed_multitask_models": ("canary",),
    "nemo.collections.asr.models.ctc_bpe_models": ("parakeet_ctc",),
    "nemo.collections.asr.models.rnnt_bpe_models": ("parakeet_rnnt", "parakeet_tdt"),
    "nemo.collections.llm.bert.model.bert": ("bert", "bert:BertForMaskedLM", "bert:BertForPreTraining"),
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
    "nemo.collections.llm.gpt.model.chatglm": ("chatglm", "glm"),
    "nemo.collections.llm.gpt.model.deepseek": ("deepseek_v2", "deepseek_v3", "glm4_moe_lite", "kimi_k2"),
    "nemo.collections.llm.gpt.model.gemma": ("gemma",),
    "nemo.collections.llm.gpt.model.gemma2": ("gemma2", "glm4"),
    "nemo.collections.llm.gpt.model.gemma3": ("gemma3_text",),
    "nemo.collections.llm.gpt.model.gpt_oss": ("gpt_oss",),
    "nemo.collections.llm.gpt.model.llama": ("llama", "llama4_text"),
    "nemo.collections.llm.gpt.model.llama_embedding": ("llama_bidirec",),
    "nemo.collections.llm.gpt.model.llama_nemotron": ("llama", "nemotron-nas"),
    "nemo.collections.llm.gpt.model.mistral": ("mistral",),
    "nemo.collections.llm.gpt.model.mixtral": ("mixtral",),
    "nemo.collections.llm.gpt.model.nemotron": ("nemotron",),
    "nemo.collections.llm.gpt.model.phi3mini": ("phi3",),
    "nemo.collections.llm.gpt.model.qwen2": ("mimo", "qwen2", "qwen2_moe"),
    "nemo.collections.llm.gpt.model.qwen3": ("qwen3", "qwen3_moe"),
    "nemo.collections.llm.gpt.model.reranker": ("llama_bidirec:LlamaBidirectionalForSequenceClassification",),
    "nemo.collections.llm.gpt.model.ssm": ("mamba2", "nemotron_h"),
    "nemo.collections.llm.gpt.model.starcoder": ("gpt_bigcode",),
    "nemo.collections.llm.gpt.model.starcoder2": ("starcoder2",),
    "nemo.collections.llm.t5.model.t5": ("mt5", "t5"),
    "nemo.collections.vlm.neva.model.llava": ("llava",),
    "nemo.collections.vlm.qwen2vl.model.base": ("qwen2_5_vl", "qwen2_vl"),
    "nemo.collections.vlm.qwen2vl.model.qwen2vl": ("qwen2_5_vl", "qwen2_vl"),
}
