"""A model of several ONNX graphs that nemoconv wrote: read as one, with the initializers of all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from ...errors import CorruptCheckpoint
from ...formats.onnx.file import Initializer, OnnxFile, read_onnx
from ...stores.files import Folder, SourceDir

#: the key of metadata_props that lists the files of all graphs
FILES: Final = "nemoconv.files"
_FIRST: Final = "encoder-model.onnx"
_MOST: Final = 16


def first_of(root: Path, names: list[str]) -> str | None:
    """The graph to begin with, of ``names`` in a directory, if they are one model that nemoconv wrote."""
    if _FIRST not in names:
        return None
    folder = SourceDir(root)
    try:
        return _FIRST if FILES in read_onnx(folder, _FIRST).metadata else None
    finally:
        folder.close()


def whole(folder: Folder, onnx: OnnxFile, beside: str) -> OnnxFile:
    """``onnx`` with what the other graphs of its model hold; itself, where it is the only one.

    Raises CorruptCheckpoint for graphs that do not belong together.
    """
    names = onnx.metadata.get(FILES, "").split()
    own = onnx.file.name.rpartition("/")[2]
    if not names:
        return onnx
    if own not in names or len(names) > _MOST or len(set(names)) != len(names):
        raise CorruptCheckpoint(
            f"{onnx.file.path}: {FILES} is {' '.join(names)!r}, which does not name this file"
        )
    for name in names:
        if name == own:
            continue
        other = read_onnx(folder, f"{beside}/{name}" if beside else name, beside)
        if any(
            other.metadata.get(key) != onnx.metadata.get(key) for key in {*other.metadata, *onnx.metadata}
        ):
            raise CorruptCheckpoint(
                f"{other.file.path}: says of itself what {own} does not",
                hint="graphs of two models seem to be mixed",
            )
        onnx = _joined(onnx, other)
    return onnx


def _joined(onnx: OnnxFile, other: OnnxFile) -> OnnxFile:
    initializers = dict(onnx.initializers)
    for name, held in other.initializers.items():
        if not held.external:
            continue  # constants of a graph, whose names each graph counts for itself
        known = initializers.setdefault(name, held)
        if _place(known) != _place(held):
            raise CorruptCheckpoint(f"{other.file.path}: {name!r} lies elsewhere than {onnx.file.name} says")
    return replace(
        onnx,
        inputs=(*onnx.inputs, *other.inputs),
        outputs=(*onnx.outputs, *other.outputs),
        nodes=(*onnx.nodes, *other.nodes),
        initializers=initializers,
    )


def _place(held: Initializer) -> tuple[object, ...]:
    return (
        held.file.name if held.file else None,
        held.offset,
        held.nbytes,
        held.shape,
        held.type,
        held.external,
    )
