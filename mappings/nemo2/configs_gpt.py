"""Old names for NeMo 2's config classes of the GPT-2 family, ChatGLM and Baichuan."""

from __future__ import annotations

from . import classes

GPT_DEFAULTS = classes.family("GPTConfig")
STARCODER_DEFAULTS = classes.family("StarcoderConfig")
CHATGLM_DEFAULTS = classes.family("ChatGLMConfig")
BAICHUAN_DEFAULTS = classes.family("Baichuan2Config")
