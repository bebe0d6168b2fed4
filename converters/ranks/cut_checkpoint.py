"""Checkpoints whose tensors ranks may hold in pieces: what their readers have in common.

A piece is handed out as its file has it. The whole is joined by the rules of a model
(:mod:`nemoconv.converters.joining`): in a conversion of the one that the checkpoint is bound to, and for who
reads single tensors of the one that the checkpoint itself understands.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Protocol

from ...errors import CorruptCheckpoint, MappingError, NemoconvError, UnsupportedError
from ...mappings import table_for
from ...mappings.hf import unowned
from ...mappings.hf.fields import Value, read_config
from ...mappings.table import Rule
from ...stores.files import Folder, SourceFile
from ...tensors.dtypes import DType
from ...tensors.stored import StoredTensor
from .. import mtp_layers
from ..base import Checkpoint, Model, Piece, TensorSpec
from ..joining import Joiner


class StoredWeights(Protocol):
    """Tensors by their names in the whole model, as the files have them: nothing is joined here."""

    @property
    def writer(self) -> str:
        """What wrote them."""

    @property
    def cut(self) -> bool:
        """Whether ranks hold pieces of them."""

    @property
    def skipped(self) -> Mapping[str, int]:
        """What is there and no tensor of the model, and how many of each kind."""

    @property
    def repeated(self) -> Sequence[tuple[StoredTensor, StoredTensor]]:
        """What is held more than once and must be equal: (a copy, the first one)."""

    @property
    def derived(self) -> Sequence[tuple[str, StoredTensor]]:
        """What a model computes from its config, kept all the same: (key, tensor)."""

    def names(self) -> Sequence[str]:
        """The tensors' names."""

    def dtype(self, name: str) -> DType:
        """The element type of a tensor, of its first piece."""

    def specs(self, name: str) -> Sequence[tuple[int | None, TensorSpec]]:
        """What headers say of each of a tensor's pieces, with its rank; None for the whole.

        Raises KeyError for an unknown name.
        """

    def pieces(self, name: str) -> Sequence[Piece]:
        """The same, with the places of the bytes."""

    def verify_checksums(self) -> Iterator[tuple[str, int]]:
        """Check those that the files have, yielding (file, bytes read)."""


#: holes of names that each have a tensor at least: how many they are, and what configs call that
_COUNTED: Final = {"layer": ("layers", "num_layers"), "expert": ("experts", "num_moe_experts")}


class CutCheckpoint(Checkpoint):
    """A checkpoint with Megatron's names. A subclass sets where its weights lie, and says what model they
    are of."""

    side = "nemo"
    _weights: StoredWeights
    _folder: Folder
    #: what says what model they are of, for messages
    _where: str
    #: what joins the tensors of the model as it was understood last, or why it could not be understood
    _joiner: Joiner | None = None
    _refused: NemoconvError | None = None

    @abstractmethod
    def _understand(self, allow_ignored: Sequence[str]) -> Model:
        """The table and model config. Raises UnsupportedArchitecture, UnsupportedConfig."""

    def model(self, allow_ignored: Sequence[str] = ()) -> Model:
        model = self._understand(allow_ignored)
        table, sizes = model.table, model.table.sizes(model.config)
        held = len(self._weights.names())
        holes = {hole for rule in table.rules for hole in rule.holes}
        for hole, (size, key) in _COUNTED.items():
            if hole in holes and sizes[size] > held:
                raise CorruptCheckpoint(f"{self._where}: says {key}={sizes[size]}, of {held} tensors")
        config = dict(model.config)  # which may be told more later
        self._joiner = Joiner(self.path, model, sizes, self.layout, lambda: table.instances(config, sizes))
        return model

    @property
    def cut(self) -> bool:
        """Whether ranks hold pieces of tensors."""
        return self._weights.cut

    def _known(self) -> Joiner | None:
        """What joins tensors; None while nobody knows the model."""
        if self._joiner is None and self._refused is None:
            try:
                self.model()
            except (UnsupportedError, CorruptCheckpoint) as error:
                self._refused = error.with_traceback(None)  # whose frames hold this object
        return self._joiner

    def _rule(self, name: str) -> Rule | None:
        joiner = self._known()
        return joiner.rule(name) if joiner is not None else None

    # tensors

    def keys(self) -> Sequence[str]:
        return list(self._weights.names())

    def spec(self, name: str) -> TensorSpec:
        specs = self._weights.specs(name)
        rank, first = specs[0]
        if rank is None:
            return first
        joiner, rule = self._required(name)
        return TensorSpec(name, first.dtype, joiner.shape(rule, self.rows(name)))

    def dtype(self, name: str) -> DType:
        return self._weights.dtype(name)

    def rows(self, name: str) -> int:
        """The length of a tensor's first axis, of all ranks together."""
        return sum(sum(spec.shape[:1]) for _, spec in self._weights.specs(name))

    def joins(self, name: str) -> bool:
        return self._weights.specs(name)[0][0] is None or self._rule(name) is not None

    def pieces(self, name: str) -> Sequence[Piece]:
        return self._weights.pieces(name)

    def stored(self, name: str) -> StoredTensor:
        pieces = self._weights.pieces(name)
        joiner = self._known()
        if pieces[0].rank is None:
            return joiner.stored(pieces, joiner.rule(name)) if joiner is not None else pieces[0].stored
        joiner, rule = self._required(name)
        return joiner.stored(pieces, rule)

    def _required(self, name: str) -> tuple[Joiner, Rule]:
        """What joins a tensor's pieces. Without it a part and a replica look alike: then the error that
        says why nothing does."""
        joiner = self._known()
        rule = joiner.rule(name) if joiner is not None else None
        if joiner is not None and rule is not None:
            return joiner, rule
        unknown = MappingError(f"no rule of the model is for {name}")
        why = unknown if joiner is not None else self._refused or unknown
        raise type(why)(
            f"{self.path}: what ranks hold of {name} cannot be joined without its rule: "
            f"{why.message.removeprefix(f'{self.path}: ')}",
            hint=why.hint or "convert --to safetensors to have what each rank holds",
        )

    def copies(self) -> Iterator[tuple[StoredTensor, StoredTensor]]:
        yield from self._weights.repeated

    # files

    @property
    def folder(self) -> Folder:
        """Where the files lie."""
        return self._folder

    def skipped(self) -> Mapping[str, int]:
        return self._weights.skipped

    def source_files(self) -> Sequence[SourceFile]:
        return self._folder.opened()

    def verify_checksums(self) -> Iterator[tuple[str, int]]:
        return self._weights.verify_checksums()

    def close(self) -> None:
        self._folder.close()


def given_model(
    hf: Mapping[str, Value], where: str, names: Sequence[str], allow_ignored: Sequence[str]
) -> Model:
    """The model of a config.json that was given for tensors of these ``names``."""
    table = table_for(hf, where)
    config, passed = read_config(table.fields, hf, allow_ignored)
    mtp_layers.settle(table, config, names, allow_ignored, told={})
    return Model(table, config, unowned.carried(hf, passed), notes=unowned.notes(hf, passed))
