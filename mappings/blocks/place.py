"""Where in a model a block stands, and the shapes that its rules come in there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from ..hf.fields import Value
from ..rules import When, same
from ..table import Part, Rule
from .names import Names


@dataclass(frozen=True, slots=True)
class Norm:
    """A kind of normalization; ``offset`` is what the computation adds to the stored weight."""

    kind: Literal["rms", "layer"]
    offset: float = 0.0


RMS: Final = Norm("rms")
RMS_OF_1_PLUS: Final = Norm("rms", offset=1.0)
LAYER: Final = Norm("layer")
LAYER_OF_1_PLUS: Final = Norm("layer", offset=1.0)


@dataclass(frozen=True, slots=True)
class There:
    """Config values under which both sides have a tensor (``when``), and under which Hugging Face has it."""

    when: When = ()
    hf_when: When = ()


ALWAYS: Final = There()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a block stands. ``layer`` is what Megatron's names of its layer begin with.

    ``transposed``: Hugging Face stores matrices [in, out]. ``respelled``: without TransformerEngine,
    Megatron's norms that are parts of linear layers have names of their own.
    """

    layer: str
    norm: Norm = RMS
    transposed: bool = False
    respelled: bool = True

    def norms(self, nemo: str, hf: str, *other_names: str) -> Iterator[Rule]:
        """A norm [hidden_size]: Megatron's names without their last word, Hugging Face's module."""
        for kind in ("weight", "bias") if self.norm.kind == "layer" else ("weight",):
            others = tuple(other + kind for other in other_names if self.respelled)
            yield same(nemo + kind, f"{hf}.{kind}", "hidden", other_names=others)

    def linear(
        self, nemo: str, hf: str, rows: str, columns: str, cut: str, bias: There | None
    ) -> Iterator[Rule]:
        """A linear layer [rows, columns]; its bias is cut where its rows are."""
        axes = f"{columns} {rows}" if self.transposed else f"{rows} {columns}"
        yield Rule(nemo + ".weight", f"{rows} {columns}", (Part(hf + ".weight", axes),), cut=cut)
        if bias:
            whole = cut if cut in rows else None
            yield same(nemo + ".bias", hf + ".bias", rows, cut=whole, when=bias.when, hf_when=bias.hf_when)


class Block(Protocol):
    """A part of a layer, as data: what it computes and how it is stored, as far as names and config do not
    say. Its ONNX graph is found by its type, in the ONNX package."""

    def rules(self, names: Names, at: Place) -> Iterator[Rule]:
        """The tensors of the block, by a stack's names."""
        ...

    def sizes(self, config: Mapping[str, Value]) -> dict[str, int]:
        """The sizes of the factors and holes that its rules name, beside width and vocabulary."""
        ...
