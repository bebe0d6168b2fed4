"""Rows of unit length, where a model's own code makes them when it runs and the other side's does not.

A model config says ``unit_rows``: False where the stored rows are to be divided by their lengths, True where
they have been. A table's ``normalized_head`` names the Hugging Face tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from ..errors import CorruptCheckpoint, UnsupportedConfig, UsageError
from ..mappings.hf.fields import Value
from ..stores.files import Folder
from ..tensors.stored import StoredTensor
from . import manifest
from .step import Binding, Step

KEY: Final = "unit_rows"
#: how far the length of a row of rounded numbers may be from 1
_TOLERANCE: Final = {"bfloat16": 2**-8, "float16": 2**-10}
_TILE: Final = 4 << 20


def normalized(tensors: Mapping[str, StoredTensor], names: tuple[str, ...]) -> dict[str, StoredTensor]:
    """The tensors, with the rows of those named divided by their lengths as they are read."""
    from ..resharding.decode.norms import UnitRows
    from ..resharding.decode.quantized import decoded

    found = dict(tensors)
    for name in names:
        if name in found:
            found[name] = decoded(name, UnitRows(found[name]), found[name].dtype)
    return found


def note(tensors: Mapping[str, StoredTensor], names: tuple[str, ...]) -> list[str]:
    """What a report says of it."""
    return [
        f"LOSSY: each of {tensors[name].shape[0]:,} rows of {name} is divided by its length, as the model's "
        "own code does when it runs; the lengths are not kept"
        for name in names
        if name in tensors
    ]


def settle(config: dict[str, Value], folder: Folder, *, asked: bool) -> None:
    """Say that it is done, or was when this program wrote the directory.

    Raises UnsupportedConfig where it has to be done and was not asked for, UsageError where it was asked for
    of a model that does not do so.
    """
    where = f"{folder.path}: config.json"
    if config.get(KEY) is not False:
        if asked:
            raise UsageError(
                f"{where}: is of no model whose own code normalises rows", hint="leave out --normalize-rows"
            )
        return
    written = None if asked else manifest.read(folder)
    if not asked and (written is None or written["model_config"].get(KEY) is not True):
        raise UnsupportedConfig(
            f"{where}: vocab_size={config['vocab_size']} is a Baichuan 2, whose output layer divides each of "
            "its rows by its length when it runs (NormHead); NeMo has no such layer",
            hint="to divide them once and for all, which loses the lengths, pass --normalize-rows",
        )
    config[KEY] = True


class NormalizedHeadStep(Step):
    """Rows that are said to have unit length must have it."""

    def check(self, bound: Binding, *, rewrites: bool) -> Iterator[str]:
        if bound.model.config.get(KEY) is True:
            _check(bound)
        yield from ()


def _check(bound: Binding) -> None:
    from ..resharding.decode.norms import row_lengths
    from ..resharding.decode.quantized import DecodedFile
    from ..tensors.read import read_box

    table, side = bound.model.table, bound.checkpoint.side
    parts = [(rule, part) for rule in table.rules for part in rule.parts if part.hf in table.normalized_head]
    for rule, part in parts:
        name = part.hf if side == "hf" else rule.nemo
        tensor = bound.stored(bound.held_as(name) or name, rule)
        if isinstance(tensor.extents[0].file, DecodedFile):  # they get it as they are read
            continue
        rows, columns = bound.sizes["true_vocab"], tensor.shape[1]
        step = max(1, _TILE // columns)
        for first in range(0, rows, step):
            count = min(step, rows - first)
            box = read_box(tensor, (first, 0), (count, columns)).astype("float32")
            lengths = row_lengths(box)  # a row of zeros has no direction, and stays what it is
            wrong = (abs(lengths - 1) > _TOLERANCE.get(tensor.dtype.name, 1e-5)) & (lengths != 0)
            if wrong.any():
                raise CorruptCheckpoint(
                    f"{bound.checkpoint.path}: row {first + int(wrong.argmax()):,} of {tensor.name} has not "
                    "the length 1, though the manifest says that rows were normalised",
                    hint=f"if the model was trained since, remove {manifest.NAME}",
                )
