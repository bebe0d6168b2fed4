"""SmolLM3: a ``SmolLM3ForCausalLM``, a Llama without rotary embeddings on some layers (every fourth).

NeMo 2 has no class for it: its plain ``GPTConfig`` has megatron-core's ``no_rope_freq``.

Source: transformers/models/smollm3, megatron/core/transformer/attention.py and transformer_config.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import UnsupportedConfig
from ..hf.fields import FullAttention, Value, check_kind
from ..llama_like import llama_like, plain_gpt
from ..nemo2.fields import plain, text


@dataclass(frozen=True, slots=True)
class NoRopeLayers:
    """``no_rope_layers`` <-> ``no_rope_freq``: a number for each layer, in transformers 1 where it is turned
    (whatever the name says), in Megatron 1 where it is not; None where all layers are turned.

    Without the list every ``no_rope_layer_interval``-th layer is not turned.
    """

    interval: int = 4
    hf_keys = frozenset({"no_rope_layers", "no_rope_layer_interval"})
    fields = frozenset({"no_rope_freq"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        count, given = config["num_layers"], hf.get("no_rope_layers")
        if given is None:
            interval = hf.get("no_rope_layer_interval", self.interval)
            step = check_kind("no_rope_layer_interval", interval, int)
            given = [int((layer + 1) % step != 0) for layer in range(count)]
        if not isinstance(given, list) or len(given) < count or set(map(repr, given)) - {"0", "1"}:
            raise UnsupportedConfig(f"config.json: no_rope_layers must be 0 or 1 for each of {count} layers")
        skipped = [1 - turned for turned in given[:count]]
        config["no_rope_freq"] = skipped if any(skipped) else None

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        skipped = config["no_rope_freq"] or [0] * config["num_layers"]
        hf["no_rope_layers"] = [1 - layer for layer in skipped]


@dataclass(frozen=True, slots=True)
class NoRopeFreq:
    """``no_rope_freq``: a list as above, or n for every n-th layer.

    Source: megatron/core/transformer/transformer_config.py, ``__post_init__``.
    """

    names = frozenset({"no_rope_freq"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        found, count = plain(fields["no_rope_freq"]), config["num_layers"]
        if isinstance(found, int) and not isinstance(found, bool) and found > 0 and count % found == 0:
            found = ((0,) * (found - 1) + (1,)) * (count // found)
        if found is None:
            found = (0,) * count
        if not isinstance(found, tuple) or len(found) != count or set(map(repr, found)) - {"0", "1"}:
            raise UnsupportedConfig(
                f"the NeMo config says no_rope_freq={text(found)}, neither 0 or 1 for each of {count} "
                "layers nor a divisor of their number"
            )
        config["no_rope_freq"] = list(found) if any(found) else None

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        fields["no_rope_freq"] = config["no_rope_freq"]


SMOLLM3 = llama_like(
    "smollm3",
    "SmolLM3ForCausalLM",
    defaults={
        "num_hidden_layers": 36,
        "hidden_size": 2048,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "vocab_size": 128256,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
        "rope_theta": 2_000_000.0,
    },
    config=(NoRopeLayers(), FullAttention()),
    nemo2=plain_gpt(NoRopeFreq()),
    proofs=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits",
        "real NeMo load",
        "real NeMo save, by hand",
    ),
)
