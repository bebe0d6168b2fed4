"""Config rules of vision towers, and of the rotary embedding of a decoder that sees images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import UnsupportedConfig
from .fields import Value, check_kind
from .rope import Rope


@dataclass(frozen=True, slots=True)
class VisionHeads:
    """What a vision tower has no keys for: as many key heads as query heads, which share the width."""

    hf_keys = frozenset[str]()
    fields = frozenset({"num_query_groups", "kv_channels"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        if hidden % heads:
            raise UnsupportedConfig(
                f"config.json: the vision tower's width {hidden} is no multiple of {heads} heads"
            )
        config |= {"num_query_groups": heads, "kv_channels": hidden // heads}

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        given: dict[str, Value] = {**config}
        self.read({}, given)
        for name in sorted(self.fields):
            if config[name] != given[name]:
                raise UnsupportedConfig(
                    f"the NeMo config of the vision tower says {name}={config[name]!r}, which has no "
                    f"counterpart; only {given[name]!r} has"
                )


@dataclass(frozen=True, slots=True)
class MultimodalRope(Rope):
    """:class:`Rope` over time, height and width: ``mrope_section`` says how many frequencies each has.

    NeMo 2 sets [16, 24, 24] whatever its config says (``Qwen2VLConfig.__post_init__``).
    """

    default_theta: float = 1_000_000.0
    section: tuple[int, ...] = (16, 24, 24)

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        rest = dict(hf)
        for key in ("rope_parameters", "rope_scaling"):
            if isinstance(rest.get(key), dict):
                rope = dict(rest[key])
                section = rope.pop("mrope_section", list(self.section))
                if section != list(self.section):
                    raise UnsupportedConfig(
                        f"config.json: mrope_section={section!r} has no counterpart in NeMo 2, which always "
                        f"takes {list(self.section)}"
                    )
                rest[key] = {k: "default" if v == "mrope" else v for k, v in rope.items()}
        Rope.read(self, rest, config)
        if config["rope_scaling"] is not None:
            raise UnsupportedConfig(
                f"config.json: rotary scaling of type {config['rope_scaling']['rope_type']!r} has no "
                "counterpart in NeMo 2 for this architecture"
            )
        if 2 * sum(self.section) != config["kv_channels"]:
            raise UnsupportedConfig(
                f"config.json: heads of {config['kv_channels']} have no counterpart in NeMo 2, whose "
                f"mrope_section {list(self.section)} is for heads of {2 * sum(self.section)}"
            )

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        Rope.write(self, config, hf)
        hf["rope_scaling"] = {"type": "mrope", "mrope_section": list(self.section)}
        hf["rope_parameters"]["mrope_section"] = list(self.section)


@dataclass(frozen=True, slots=True)
class FullAttentionBlocks:
    """``fullatt_block_indexes``: the layers of a tower that see the whole image, the others see windows."""

    default: tuple[int, ...] = (7, 15, 23, 31)
    hf_keys = frozenset({"fullatt_block_indexes"})
    fields = frozenset({"fullatt_block_indexes"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        value = hf.get("fullatt_block_indexes", list(self.default))
        if not isinstance(value, (list, tuple)) or not all(
            type(n) is int and 0 <= n < 1 << 16 for n in value
        ):
            raise UnsupportedConfig(f"config.json: fullatt_block_indexes={value!r} is not a list of layers")
        config["fullatt_block_indexes"] = list(value)

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        checked: dict[str, Value] = {}
        self.read(config, checked)
        hf |= checked


@dataclass(frozen=True, slots=True)
class MlpRatio:
    """``mlp_ratio`` <-> ``ffn_hidden_size``, a multiple of ``hidden_size``."""

    default: int = 4
    hf_keys = frozenset({"mlp_ratio"})
    fields = frozenset({"ffn_hidden_size"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        ratio = check_kind("mlp_ratio", hf.get("mlp_ratio", self.default), int)
        config["ffn_hidden_size"] = config["hidden_size"] * ratio

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        ratio, rest = divmod(config["ffn_hidden_size"], config["hidden_size"])
        if rest:
            raise UnsupportedConfig(
                f"ffn_hidden_size={config['ffn_hidden_size']} of the vision tower is no multiple of "
                f"hidden_size={config['hidden_size']}, which mlp_ratio in config.json needs"
            )
        hf["mlp_ratio"] = ratio
