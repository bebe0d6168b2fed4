"""What only the tensors of a checkpoint tell of multi-token prediction: whether its layers are there, and
whether they hold the embedding and the output layer again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final

from ..errors import MappingError
from ..mappings.hf.fields import Value
from ..mappings.mtp import KEYS, has_mtp
from ..mappings.table import Depth, Table
from .base import Side
from .step import Binding, Pairs, Step

#: of a model config: the originals of what these layers hold again in Hugging Face files
COPIED: Final = "mtp_copies"
#: of a model config: how many such layers there are
COUNT: Final = "mtp_num_layers"
_MTP: Final = "mtp.layers."
#: layers beyond the last one that are looked for
_MAX_BEYOND: Final = 16


def settle(
    table: Table,
    config: dict[str, Value],
    names: Collection[str],
    allow_ignored: Collection[str],
    *,
    told: Mapping[str, Value] | None = None,
    certain: bool = False,
) -> None:
    """Set how many such layers the model has, after a config.json or NeMo's config was read.

    A config.json counts layers that transformers leaves out when it saves a model, so none at all is as
    good as what it says, unless the config is ``certain``; some of them missing is an error later.
    ``told``: the model config that the manifest of Megatron's tensors has, None for a Hugging Face directory.
    """
    if not has_mtp(table.rules):
        return
    layers, count = config["num_layers"], config["mtp_num_layers"]
    if not set(KEYS).isdisjoint(allow_ignored):
        count = 0
    beyond = tuple(table.mtp_layer.format(layer=layers + number) for number in range(count))
    if not certain and not any(name.startswith((*beyond, _MTP)) for name in names):
        count = 0
    config["mtp_num_layers"] = count
    if not count:
        return
    if told is None:
        config[COPIED] = sorted(
            {original for copy, original, _ in copies(table, layers, count) if copy in names}
        )
    elif isinstance(told.get(COPIED), list):
        config[COPIED] = [name for name in told[COPIED] if isinstance(name, str)]


def absent(
    promised: Value, config: Mapping[str, Value], hf: Mapping[str, Value], allow_ignored: Collection[str]
) -> list[str]:
    """A note on layers that a config.json promises and a checkpoint has not: the key will say so."""
    if not promised or config.get(COUNT) or not set(KEYS).isdisjoint(allow_ignored):
        return []
    key = next((key for key in KEYS if key in hf), KEYS[0])
    return [f"config.json says {key}={promised}, but holds no such layer: {key}=0 is written"]


def copies(table: Table, layers: int, count: int) -> Iterator[tuple[str, str, Depth]]:
    """(copy, original, number of the layer) of what ``count`` such layers may hold again."""
    for number in range(count):
        depth = Depth(number, layers)
        for copy, original in table.copies:
            yield copy.format(depth=depth), original, depth


class MtpStep(Step):
    """Hugging Face files may hold the embedding and the output layer again in each of these layers, and
    layers that the config does not count."""

    compares = True

    def claim(self, bound: Binding, left: Collection[str]) -> Mapping[str, str | None]:
        found: dict[str, str | None] = {}
        copied = _copies(self.table, bound.model.config, lambda _: True)
        for original, again in copied.items() if bound.checkpoint.side == "hf" else ():
            stored = bound.held_as(original)
            found |= {name: stored for name in again if stored is not None and name in left}
        if not set(KEYS).isdisjoint(bound.model.ignored):
            found |= dict.fromkeys(self._beyond(bound, left) - found.keys())
        return found

    def explain(self, bound: Binding, left: Collection[str]) -> str:
        if set(left) != self._beyond(bound, left):
            return ""
        return f'they are for multi-token prediction; to leave them out, pass "--allow-ignored {KEYS[0]}"'

    def _beyond(self, bound: Binding, names: Iterable[str]) -> set[str]:
        """Those of ``names`` that are of layers beyond the last one that the config counts."""
        if not self.table.mtp_layer:
            return set()
        layers = range(bound.sizes["layers"], bound.sizes["layers"] + _MAX_BEYOND)
        beyond = tuple(self.table.mtp_layer.format(layer=layer) for layer in layers)
        starts = beyond if bound.checkpoint.side == "hf" else (_MTP,)
        return {name for name in names if name.startswith(starts)}

    def again(self, config: Mapping[str, Value], side: Side) -> Mapping[str, Sequence[str]]:
        """A tied model's output layer is its embedding. Released models have these copies, so they are
        written unless the manifest tells that the model came without."""
        told = config.get(COPIED)
        if side != "hf":
            return {}
        return _copies(self.table, config, lambda original: told is None or original in told)

    def notes(self, bound: Binding, target: Side) -> Iterator[str]:
        """Source of the last note: megatron/core/models/gpt/gpt_model.py, ``_postprocess``, 0.14 to 0.16."""
        claimed = bound.claimed(self)
        repeated = sum(original is not None for _, original in claimed)
        if len(claimed) > repeated:
            yield f"{len(claimed) - repeated:,} tensors of multi-token prediction layers are left out"
        if repeated:
            yield (
                f"{repeated} copies of shared tensors in multi-token prediction layers must be equal to "
                "what Megatron keeps once, and are left out"
            )
        if bound.sizes.get("depths") and target == "nemo":
            yield (
                f"multi-token prediction layers go along ({KEYS[2]}={bound.sizes['depths']}); "
                "megatron-core up to 0.16 runs such a model only with labels, so to generate leave them out "
                f"(--allow-ignored {KEYS[0]})"
            )

    def compare(self, where: str, pairs: Pairs) -> None:
        from ..resharding.equal import first_difference

        for copy, original in pairs:
            same = copy.shape == original.shape and copy.dtype == original.dtype
            difference = first_difference(copy, original) if same else "their shapes or dtypes differ"
            if difference:
                raise MappingError(
                    f"{where}: {copy.name} is not {original.name}, which Megatron has once for all "
                    f"multi-token prediction layers: {difference}",
                    hint=f"to leave out the multi-token prediction layers, pass --allow-ignored {KEYS[0]}",
                )


def _copies(table: Table, config: Mapping[str, Value], chosen: Callable[[str], bool]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    count = config.get("mtp_num_layers") or 0
    tied = dict(table.tied) if count and config.get("share_embeddings_and_output_weights") else {}
    for copy, original, _ in copies(table, config["num_layers"], count) if count else ():
        if chosen(original):
            found.setdefault(tied.get(original, original), []).append(copy)
    return found
