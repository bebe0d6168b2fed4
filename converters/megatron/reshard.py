"""Megatron-LM's rank directories in another layout."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from ...errors import LayoutError, UnsupportedError, UnsupportedFormat, some
from ...formats.torch import items as torch_items
from ...formats.torch import pickle_writer as opcodes
from ...formats.torch.checkpoint import Entry, StateDictItem
from ...formats.torch.pickle_writer import PickleWriter
from ...formats.torch.pickles import Stub
from ...resharding.layout_file import notation
from ...stores.output import OutputDirectory
from ...tensors.dtypes import DType
from ...tensors.layout import Layout
from ..base import Model
from ..ranks.writer import Rank, RankWriter, empty_entries

if TYPE_CHECKING:
    from .checkpoint import MegatronCheckpoint

_EMBEDDING = "embedding.word_embeddings.weight"
_OUTPUT = "output_layer.weight"
#: belongs to the run or its optimizer's cut; what else stands beside the model is the same on every rank
_OPTIMIZER: Final = ("optimizer",)
_OF_RANKS: Final = ("rng_state", "rerun_state_machine")
_CHUNK = re.compile(r"model\d*\.")


def file_name(layout: Layout, rank: Rank) -> str:
    """Where Megatron-LM keeps a rank's checkpoint."""
    tensor, stage = rank
    several = layout.pipeline_parallel_size > 1
    folder = f"mp_rank_{tensor:02d}_{stage:03d}" if several else f"mp_rank_{tensor:02d}"
    return f"{folder}/model_optim_rng.pt"


class MegatronResharder(RankWriter):
    """Writes what ``source`` holds for other ranks: the model, and what every rank holds alike."""

    def __init__(
        self,
        output: OutputDirectory,
        source: MegatronCheckpoint,
        model: Model,
        layout: Layout,
        *,
        drop_optimizer: bool,
    ) -> None:
        weights, sizes = source.weights, model.sizes
        if layout.expert_parallel_size > 1 or layout.expert_tensor_parallel_size is not None:
            raise LayoutError(
                f"{source.path}: experts of their own ranks are not written into rank directories",
                hint="leave out --ep and --etp, or convert it to nemo2",
            )
        if model.config.get("mtp_num_layers") and layout.pipeline_parallel_size > 1:
            raise LayoutError(
                f"{source.path}: layers that predict further tokens need the embedding again on the last "
                "stage, which is not written into rank directories",
                hint="leave out --pp, or convert it to nemo2",
            )
        if any("language_model." in key for keys in weights.keys.values() for key in keys.values()):
            raise UnsupportedFormat(
                f"{source.path}: was saved by Megatron-LM's own models, before megatron-core's",
                hint="convert it with --to hf or --to nemo2",
            )
        self._notes: list[str] = []
        self._around = self._select(source, drop_optimizer)
        tied = model.config.get("share_embeddings_and_output_weights") is True
        embedding = next(iter(weights.keys[_EMBEDDING].values()))
        runs = layout.virtual_pipeline_parallel_size
        first, last = (f"model{n}." if runs > 1 else "model." for n in (0, runs - 1))
        nothing, lost = empty_entries(weights)
        self._notes += lost
        super().__init__(
            output,
            layout,
            sizes["layers"],
            lambda rank: file_name(layout, rank),
            weights.keys,
            nothing=nothing,
            tied=(_CHUNK.sub(first, embedding, count=1), last + _OUTPUT) if tied else None,
        )
        self._args = {
            "tensor_model_parallel_size": layout.tensor_parallel_size,
            "pipeline_model_parallel_size": layout.pipeline_parallel_size,
            "transformer_pipeline_model_parallel_size": layout.pipeline_parallel_size,
            "virtual_pipeline_model_parallel_size": layout.virtual_pipeline_parallel_size
            if layout.virtual_pipeline_parallel_size > 1
            else None,
            "num_layers_per_virtual_pipeline_stage": None,
            "decoder_first_pipeline_num_layers": layout.num_layers_in_first_pipeline_stage,
            "decoder_last_pipeline_num_layers": layout.num_layers_in_last_pipeline_stage,
            "account_for_embedding_in_pipeline_split": layout.account_for_embedding_in_pipeline_split,
            "account_for_loss_in_pipeline_split": layout.account_for_loss_in_pipeline_split,
            "pipeline_model_parallel_layout": notation(layout, sizes["layers"]) if layout.stages else None,
            "padded_vocab_size": sizes["vocab"],
        }

    def _select(self, source: MegatronCheckpoint, drop_optimizer: bool) -> dict[str, Any]:
        """What stands beside the model and is the same for every rank."""
        folder = source.folder
        files = [name for under in folder.folders() for name in folder.names(under)]
        optimizer = [key for key in source.around if key in _OPTIMIZER]
        optimizer += [name for name in files if name.endswith("distrib_optim.pt")]
        if optimizer and not drop_optimizer:
            raise UnsupportedError(
                f"{source.path}: its optimizer state is cut for its own layout: {some(optimizer, 3)}",
                hint="pass --drop-optimizer to leave it out, or save with --ckpt-format torch_dist",
            )
        if optimizer:
            self._notes.append(f"optimizer state left out, as --drop-optimizer asks: {some(optimizer, 3)}")
        of_ranks = [key for key in source.around if key in _OF_RANKS]
        if of_ranks:
            self._notes.append(f"state of single ranks fits no other layout: {some(of_ranks)} left out")
        skipped = {*_OPTIMIZER, *_OF_RANKS}
        return {key: value for key, value in source.around.items() if key not in skipped}

    def notes(self) -> Sequence[str]:
        return self._notes

    def _local(self, key: str, layer: int) -> str:
        """Of several runs of layers, each has a state dict of its own."""
        virtual = self.layout.virtual_pipeline_parallel_size
        run = self.layout.virtual_stage(layer, self._num_layers)
        prefix = f"model{run}." if virtual > 1 else "model."
        return _CHUNK.sub(prefix, super()._local(key, layer), count=1)

    def _item(self, rank: Rank, entries: Mapping[str, Entry]) -> StateDictItem:
        return StateDictItem(entries, root="model_optim_rng", pickled=self._pickle(entries))

    def _pickle(self, entries: Mapping[str, Entry]) -> bytes:
        """The checkpoint of a rank: what is beside the model, then the state dict of each run of layers."""
        own = [key for key, entry in entries.items() if isinstance(entry, tuple)]
        numbers = {key: str(number) for number, key in enumerate(own)}
        writer = PickleWriter()
        writer.raw(opcodes.EMPTY_DICT + opcodes.MARK)
        for name, value in self._around.items():
            writer.text(name)
            _put(writer, value, name, self._args if name == "args" else {})
        virtual = self.layout.virtual_pipeline_parallel_size
        for part in [f"model{n}" for n in range(virtual)] if virtual > 1 else ["model"]:
            writer.text(part)
            writer.name("collections", "OrderedDict")
            writer.raw(opcodes.EMPTY_TUPLE + opcodes.REDUCE + opcodes.MARK)
            for key, entry in entries.items():
                first, _, rest = key.partition(".")
                if first != part:
                    continue
                writer.text(rest)
                if isinstance(entry, tuple):
                    torch_items.put_tensor(writer, *entry, numbers[key])
                else:
                    writer.raw(opcodes.NONE)
            writer.raw(opcodes.SETITEMS)
        writer.raw(opcodes.SETITEMS)
        return writer.finish()


def _put(writer: PickleWriter, value: Any, where: str, changed: Mapping[str, Any]) -> None:
    """Append a value that was read from a pickle; ``changed`` are attributes that it shall have instead.

    Raises UnsupportedError for what no pickle of ours can hold.
    """
    if isinstance(value, DType):
        writer.name("torch", value.name)
    elif isinstance(value, Stub):
        writer.name(*value.kind)
        writer.raw(opcodes.MARK)
        for item in value.args:
            _put(writer, item, where, {})
        writer.raw(opcodes.TUPLE + (opcodes.REDUCE if value.args else opcodes.NEW[-1:]))
        if value.state is not None:
            state = value.state
            if isinstance(state, dict):
                state = {key: changed.get(key, item) for key, item in state.items()}
            _put(writer, state, where, {})
            writer.raw(opcodes.BUILD)
    elif isinstance(value, dict):
        writer.raw(opcodes.EMPTY_DICT + opcodes.MARK)
        for key, item in value.items():
            writer.value(key)
            _put(writer, item, f"{where}.{key}", {})
        writer.raw(opcodes.SETITEMS)
    elif isinstance(value, (list, tuple)):
        writer.raw(opcodes.MARK if isinstance(value, tuple) else opcodes.EMPTY_LIST + opcodes.MARK)
        for item in value:
            _put(writer, item, where, {})
        writer.raw(opcodes.TUPLE if isinstance(value, tuple) else opcodes.APPENDS)
    else:
        try:
            writer.value(value)
        except UnsupportedError as error:
            raise UnsupportedError(f"{where}: {error.message}") from None
