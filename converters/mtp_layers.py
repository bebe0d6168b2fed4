"""What only the tensors of a checkpoint tell of layers that predict further tokens: whether they are there,
and whether they hold the embedding and the output layer again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Final

from ..errors import MappingError
from ..mappings.hf.fields import Value
from ..mappings.mtp import KEYS, has_further
from ..mappings.table import Depth, Table
from ..tensors.stored import StoredTensor

#: of a model config: the originals of what these layers hold again in Hugging Face files
COPIED: Final = "mtp_copies"
_FURTHER: Final = "mtp.layers."


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
    if not has_further(table.rules):
        return
    layers, count = config["num_layers"], config["mtp_num_layers"]
    if not set(KEYS).isdisjoint(allow_ignored):
        count = 0
    beyond = tuple(table.further.format(layer=layers + number) for number in range(count))
    if not certain and not any(name.startswith((*beyond, _FURTHER)) for name in names):
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


def copies(table: Table, layers: int, count: int) -> Iterator[tuple[str, str, Depth]]:
    """(copy, original, number of the layer) of what ``count`` further layers may hold again."""
    for number in range(count):
        depth = Depth(number, layers)
        for copy, original in table.copies:
            yield copy.format(depth=depth), original, depth


def notes(sizes: Mapping[str, int], repeated: int, side: str) -> Iterator[str]:
    """What a report says of layers that predict further tokens. Source of the second note:
    megatron/core/models/gpt/gpt_model.py, ``_postprocess``, 0.14 to 0.16."""
    if repeated:
        yield (
            f"{repeated} copies of shared tensors in layers that predict further tokens must be equal to "
            "what Megatron keeps once, and are left out"
        )
    if sizes.get("depths") and side == "nemo":
        yield (
            f"layers that predict further tokens go along ({KEYS[2]}={sizes['depths']}); megatron-core up to "
            "0.16 runs such a model only with labels, so to generate leave them out "
            f"(--allow-ignored {KEYS[0]})"
        )


def check_copies(where: str, pairs: Iterable[tuple[StoredTensor, StoredTensor]]) -> None:
    """Compare what further layers hold again with the tensors that Megatron keeps once, bit for bit.

    Raises MappingError where they differ.
    """
    from ..resharding.equal import first_difference

    for copy, original in pairs:
        same = copy.shape == original.shape and copy.dtype == original.dtype
        difference = first_difference(copy, original) if same else "their shapes or dtypes differ"
        if difference:
            raise MappingError(
                f"{where}: {copy.name} is not {original.name}, which Megatron has once for all layers that "
                f"predict tokens: {difference}",
                hint=f"to leave out layers that predict further tokens, pass --allow-ignored {KEYS[0]}",
            )


def written_copies(table: Table, config: Mapping[str, Value]) -> dict[str, list[str]]:
    """Hugging Face tensor -> the copies of it that a directory of this model has.

    A tied model's output layer is its embedding. Released models have these copies, so they are written
    unless the manifest tells that the model came without.
    """
    told = config.get(COPIED)
    return _copies(table, config, lambda original: told is None or original in told)


def all_copies(table: Table, config: Mapping[str, Value]) -> dict[str, list[str]]:
    """The same, of all that a directory may have."""
    return _copies(table, config, lambda _: True)


def _copies(table: Table, config: Mapping[str, Value], chosen: Callable[[str], bool]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    count = config.get("mtp_num_layers") or 0
    tied = dict(table.tied) if count and config.get("share_embeddings_and_output_weights") else {}
    for copy, original, _ in copies(table, config["num_layers"], count) if count else ():
        if chosen(original):
            found.setdefault(tied.get(original, original), []).append(copy)
    return found
