"""``genai_config.json``: what onnxruntime-genai must be told of a decoder.

Source: onnxruntime-genai's "Config reference" and src/config.cpp; src/models/model_type.h for the kinds.
"""

from __future__ import annotations

from collections.abc import Mapping

from ....mappings.hf.fields import Value
from .architectures import Decoder
from .attention import FLAVORS

NAME = "genai_config.json"


def genai_config(
    decoder: Decoder,
    config: Mapping[str, Value],
    flavor: str,
    tokens: Mapping[str, Value],
    generation: Mapping[str, Value],
) -> dict[str, Value]:
    """The content of the file. ``tokens`` and ``generation`` are keys of config.json and of
    generation_config.json; the latter win, as they do in transformers."""
    heads = decoder.projections.heads(config)
    ends = _first(generation, tokens, "eos_token_id")
    starts, pads = (_first(generation, tokens, f"{name}_token_id") for name in ("bos", "pad"))
    if pads is None:
        pads = ends[0] if isinstance(ends, list) and ends else ends
    special = {"bos_token_id": starts, "eos_token_id": ends, "pad_token_id": pads}
    return {
        "model": {
            **{key: value for key, value in special.items() if value is not None},
            "context_length": config["seq_length"],
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": "model.onnx",
                "head_size": heads.head_dim,
                "hidden_size": config["hidden_size"],
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "position_ids": "position_ids",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "num_attention_heads": config["num_attention_heads"],
                "num_hidden_layers": config["num_layers"],
                "num_key_value_heads": heads.groups,
            },
            "type": decoder.genai,
            "vocab_size": config["vocab_size"],
        },
        "search": {
            "do_sample": bool(generation.get("do_sample", False)),
            "max_length": config["seq_length"],
            "min_length": 0,
            "num_beams": 1,
            "past_present_share_buffer": FLAVORS[flavor].shares_cache,
            "repetition_penalty": float(generation.get("repetition_penalty") or 1.0),
            "temperature": float(generation.get("temperature") or 1.0),
            "top_k": int(generation.get("top_k") or 50),
            "top_p": float(generation.get("top_p") or 1.0),
        },
    }


def _first(generation: Mapping[str, Value], tokens: Mapping[str, Value], key: str) -> Value:
    found = generation.get(key)
    return tokens.get(key) if found is None else found
