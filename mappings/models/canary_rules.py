"""The tensors of Canary; on the way the hidden axis of the decoder changes its order.

Source: nemo/collections/asr/modules/transformer/transformer_{modules,decoders}.py and
transformers/models/canary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from ...errors import UnsupportedConfig
from ..families.fastconformer import check_depth, encoder_rules, encoder_sizes
from ..hf.fields import Value
from ..table import Part, Rule

_NEMO: Final = "transf_decoder._decoder.layers.{layer}."
_HF: Final = "model.decoder.layers.{layer}."
POSITIONS: Final = "transf_decoder._embedding.position_embedding.pos_enc"
EMBEDDING: Final = "transf_decoder._embedding.token_embedding.weight"
#: elements of the table of positions, which is computed; Canary's has 2**20
_MOST_POSITIONS: Final = 1 << 27
OUTPUT: Final = "log_softmax.mlp.layer0.weight"
#: the decoder's hidden axis on either side
_ORDER: Final = ("(frequency phase)", "(phase frequency)")


def _pair(nemo: str, hf: str, axes: str) -> Rule:
    """One tensor on both sides; ``decoder`` in ``axes`` stands for the decoder's hidden axis."""
    ours, theirs = (axes.replace("decoder", order) for order in _ORDER)
    return Rule(nemo, ours, (Part(hf, theirs),))


def _linear(nemo: str, hf: str, out: str, into: str) -> tuple[Rule, Rule]:
    return (
        _pair(nemo + ".weight", hf + ".weight", f"{out} {into}"),
        _pair(nemo + ".bias", hf + ".bias", out),
    )


def _norm(nemo: str, hf: str) -> tuple[Rule, Rule]:
    return _pair(nemo + ".weight", hf + ".weight", "decoder"), _pair(nemo + ".bias", hf + ".bias", "decoder")


def _attention(nemo: str, hf: str, keys: str) -> tuple[Rule, ...]:
    """``keys`` is the axis that keys and values are made from: the encoder's is in one order everywhere."""
    return (
        *_linear(_NEMO + nemo + ".query_net", _HF + hf + ".q_proj", "attention", "decoder"),
        *_linear(_NEMO + nemo + ".key_net", _HF + hf + ".k_proj", "attention", keys),
        *_linear(_NEMO + nemo + ".value_net", _HF + hf + ".v_proj", "attention", keys),
        *_linear(_NEMO + nemo + ".out_projection", _HF + hf + ".o_proj", "decoder", "attention"),
    )


def _decoder_layer() -> tuple[Rule, ...]:
    return (
        *_norm(_NEMO + "layer_norm_1", _HF + "input_layernorm"),
        *_attention("first_sub_layer", "self_attn", "decoder"),
        *_norm(_NEMO + "layer_norm_2", _HF + "post_attention_layernorm"),
        *_attention("second_sub_layer", "encoder_attn", "hidden"),
        *_norm(_NEMO + "layer_norm_3", _HF + "final_layernorm"),
        *_linear(_NEMO + "third_sub_layer.dense_in", _HF + "mlp.fc1", "inner", "decoder"),
        *_linear(_NEMO + "third_sub_layer.dense_out", _HF + "mlp.fc2", "decoder", "inner"),
    )


def _in_set(rules: tuple[Rule, ...], name: str) -> tuple[Rule, ...]:
    """``rules``, those of layers being for the layers of set ``name``."""
    return tuple(replace(rule, layers=name) if rule.holes else rule for rule in rules)


def layer_sets(config: Mapping[str, Value]) -> dict[str, frozenset[int]]:
    return {
        "encoder": frozenset(range(config["n_layers"])),
        "decoder": frozenset(range(config["num_layers"])),
    }


def sizes(config: Mapping[str, Value]) -> dict[str, int]:
    """Sizes of the factors of Canary's rules."""
    encoder = encoder_sizes(config)
    hidden = config["hidden_size"]
    check_depth(config["num_layers"])
    if config["max_sequence_length"] * hidden > _MOST_POSITIONS:
        raise UnsupportedConfig(f"max_sequence_length={config['max_sequence_length']:,} is out of range")
    if hidden != encoder["hidden"]:
        raise UnsupportedConfig(
            f"the encoder is {encoder['hidden']} wide, the decoder {hidden}: "
            "Hugging Face's class has no projection between them"
        )
    if hidden % config["num_attention_heads"] or hidden % 2:
        raise UnsupportedConfig(f"hidden_size={hidden} is odd, or no multiple of num_attention_heads")
    return {
        **encoder,
        "layers": max(config["n_layers"], config["num_layers"]),
        "frequency": hidden // 2,
        "phase": 2,
        "attention": hidden,
        "inner": config["inner_size"],
    }


RULES = (
    *_in_set(encoder_rules("model.encoder."), "encoder"),
    *_in_set(_decoder_layer(), "decoder"),
    _pair(EMBEDDING, "model.decoder.embed_tokens.weight", "vocab decoder"),
    *_norm("transf_decoder._embedding.layer_norm", "model.decoder.embedding_layernorm"),
    *_norm("transf_decoder._decoder.final_layer_norm", "model.decoder.norm"),
    _pair("log_softmax.mlp.layer0.bias", "proj_out.bias", "vocab"),
)
