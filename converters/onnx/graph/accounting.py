"""Every field of a model config is accounted for: a graph that follows from blocks must not leave out what
the config says besides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from ....errors import UnsupportedConfig, some
from ....mappings.hf.fields import Value
from ....mappings.table import Table
from .architectures import Decoder, Encoder

#: of training; the type of the tensors, which they say themselves; how long texts may be
_NO_COMPUTATION: Final = frozenset(
    "attention_dropout hidden_dropout init_method_std moe_aux_loss_coeff params_dtype seq_length".split()
)


class Reading(Mapping[str, Value]):
    """A model config that knows which of its fields were read."""

    def __init__(self, config: Mapping[str, Value]) -> None:
        self._config = config
        self.read: set[str] = set()

    def __getitem__(self, field: str) -> Value:
        self.read.add(field)
        return self._config[field]

    def __iter__(self) -> Iterator[str]:
        return iter(self._config)

    def __len__(self) -> int:
        return len(self._config)


def check(table: Table, kind: Decoder | Encoder, config: Reading) -> None:
    """Raise UnsupportedConfig for fields that the graph built from ``config`` did not read, by name, unless a
    condition of a tensor, a size or a set of layers says what they say. None says nothing."""
    for ask in (table.sizes, table.layer_sets, table.alike):
        if ask:
            ask(config)
    conditions = {name for rule in table.rules for name, _ in (*rule.when, *rule.hf_when)}
    known = config.read | conditions | _NO_COMPUTATION | _of_some_layers(kind)
    said = frozenset().union(*(rule.fields for rule in table.fields)) & config.keys()
    left = [f"{name}={config[name]!r}" for name in sorted(said - known) if config[name] is not None]
    if left:
        raise UnsupportedConfig(
            f"the ONNX graph of {table.architecture!r} leaves out what the config says: {some(left)}",
            hint="convert to another format, or ask for a graph that computes it",
        )


def _of_some_layers(kind: Decoder | Encoder) -> frozenset[str]:
    """Fields that a graph reads for layers that a model need not have, and those of a head that it lacks."""
    if not kind.generates:
        return frozenset({"sliding_window", "share_embeddings_and_output_weights"})
    fields = {"sliding_window"}
    if isinstance(kind, Decoder) and kind.local_rope:
        fields.add("rotary_base_local")
    if isinstance(kind, Decoder) and kind.chunked:
        fields.add("attention_chunk_size")
    return frozenset(fields)
