"""Writing NeMo 2 directories: ``.distcp`` files per rank, ``context/``, and last what makes it loadable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from math import prod
from typing import TYPE_CHECKING, ClassVar, Final

from ...errors import MappingError
from ...formats.text.fiddle import Symbol
from ...formats.torch import dist as torch_dist
from ...formats.torch import dist_writer as torch_dist_writer
from ...formats.torch import items as torch_items
from ...formats.torch.dist import DistChunk, DistObject, DistTensor
from ...mappings.hf.fields import Value
from ...resharding.plan import Payload
from ...stores.output import OutputDirectory, OutputFile
from ...tensors.dtypes import DType
from ...tensors.layout import Layout
from ..base import Model, Request
from ..hf import tokenizer_files
from ..hf.checkpoint import GENERATION_CONFIG, TOKENIZER_FILES
from ..sink import Sink
from ..torch_dist import names as names
from ..torch_dist.names import EXTRA_STATE, PREFIX
from . import context as nemo2_context
from . import layout as nemo2_layout

if TYPE_CHECKING:
    from ..bind import Bound

#: how large a ``.distcp`` file gets before its rank begins another, as torch's own writer does.
#: A file can have but one writer at a time, so more of them are written faster; loaders take any number.
FILE_NBYTES = 512 << 20
#: what loaders of megatron-core 0.14 and newer ask for, and the older ones ignore
_CONTENT: Final = {"distrib_optim_sharding_type": "fully_sharded_model_space"}
_COMMON: Final = {
    "content_metadata": _CONTENT,
    "epoch": 0,
    "global_step": 0,
    "pytorch-lightning_version": "2.4.0",
    "state_dict": {},
}


def _file_name(rank: int, number: int) -> str:
    return f"__{rank}_{number}.distcp"


def half_of(request: Request, key: str) -> tuple[Request, str]:
    """A request for a box of gate or up, as one for a box of the tensor and key that this half has alone."""
    rows = request.shape[0] // 2
    half = request.start[0] // rows
    shape, start = (rows, *request.shape[1:]), (request.start[0] - half * rows, *request.start[1:])
    return replace(request, shape=shape, start=start), names.halves_of(key)[half]


class NeMo2Sink(Sink):
    """``.distcp`` files per rank, then ``.metadata``, ``context/``, and ``metadata.json`` last."""

    side = "nemo"
    #: what the names of tensors begin with
    prefix: ClassVar[str] = PREFIX

    def __init__(
        self, output: OutputDirectory, model: Model, layout: Layout, *, singleton: bool = False
    ) -> None:
        sizes = model.sizes
        self._output, self._model, self._sizes = output, model, sizes
        # NeMo builds the vocabulary that its config states and pads nothing itself
        told = {
            "vocab_size": sizes["vocab"],
            "tensor_parallel_size": layout.tensor_parallel_size,
            "pipeline_parallel_size": layout.pipeline_parallel_size,
        }
        self._config = model.table.nemo.write({**model.config, **told})
        self.layout = layout
        self._singleton = singleton
        self._stacked = model.table.stacked(model.config) and not self._singleton
        #: tensors made of a gate and an up
        self._gated: set[str] = set()
        self._files: dict[int, list[OutputFile]] = {}
        self._items: list[tuple[Payload, torch_items.TensorItem]] = []
        self._tensors: dict[str, tuple[DType, tuple[int, ...], list[DistChunk]]] = {}
        self._objects: list[DistObject] = []

    def reserve(self, requests: Sequence[Request]) -> Sequence[Payload]:
        self._reserve_objects()
        payloads = [self._reserve(request) for request in requests]
        self.tensor_count = len(self._tensors)
        return payloads

    def begin(self, bound: Bound) -> None:
        if self._singleton:
            halves = (each for each in bound.instances if "half" in each.rule.view.axes[0])
            self._gated = {each.nemo for each in halves}

    def file_of(self, rank: int) -> str:
        return self._at(_file_name(rank, 0))

    def files_of(self, rank: int) -> list[str]:
        return [file.name for file in self._files.get(rank, [])]

    def _file_for(self, rank: int, nbytes: int) -> tuple[OutputFile, str]:
        """The file of a rank with room for ``nbytes`` bytes at its end, and its name in .metadata."""
        files = self._files.setdefault(rank, [])
        begins = not files or (files[-1].size and files[-1].size + nbytes > FILE_NBYTES)
        name = _file_name(rank, len(files) - (not begins))
        if begins:
            files.append(self._output.file(self._at(name)))
        return files[-1], name

    def _reserve(self, request: Request) -> Payload:
        if self._singleton:
            return self._reserve_alone(request)
        key = names.stored_key(request.name, stacked=self._stacked)
        count = names.layer_count(key.name) if self._stacked else None
        lead: tuple[int, ...] = (self._sizes[count],) if count else ()
        lead += (self._sizes["experts"],) if len(key.index) > len(lead) else ()
        return self._add(
            self.prefix + key.name,
            request.dtype,
            (*lead, *request.shape),
            (*key.index, *request.start),
            (*(1,) * len(lead), *request.box),
            request.rank,
        )

    def _reserve_alone(self, request: Request) -> Payload:
        """Under keys that no two layers, experts or halves of a gated ``linear_fc1`` share."""
        key = names.alone(request.name)
        if request.name in self._gated:
            request, key = half_of(request, key)
        return self._add(
            self.prefix + key, request.dtype, request.shape, request.start, request.box, request.rank
        )

    def _add(
        self,
        name: str,
        dtype: DType,
        shape: tuple[int, ...],
        start: tuple[int, ...],
        box: tuple[int, ...],
        rank: int,
    ) -> Payload:
        """A place in the rank's files for a chunk of the stored tensor ``name`` of ``shape``."""
        file, file_name = self._file_for(rank, prod(box) * dtype.itemsize)
        offset = file.size
        item = torch_items.TensorItem(dtype, box, offset)
        file.size += item.length
        payload = Payload(f"{name}{list(start)}", file, item.payload_offset, item.nbytes)
        self._items.append((payload, item))
        known, _, chunks = self._tensors.setdefault(name, (dtype, shape, []))
        if known is not dtype:
            raise MappingError(
                f"{name.removeprefix(self.prefix)}: layers have different dtypes, {known} and {dtype}, "
                "and cannot be stacked",
                hint="pass --dtype to bring them to one",
            )
        chunks.append(DistChunk(start, box, file_name, offset, item.length))
        return payload

    def _at(self, name: str) -> str:
        """Where a file of the weights lies in the output."""
        return f"weights/{name}"

    def _reserve_objects(self) -> None:
        """``_extra_state`` of every module that TransformerEngine could hold: loaders fail without."""
        table, layers = self._model.table, self._sizes["layers"]
        sets = table.layer_sets(self._model.config) if table.layer_sets else {}
        item = torch_items.object_item([None])
        for module in table.modules:
            if any(self._model.config.get(key) != value for key, value in module.when):
                continue
            beside = names.is_beside(module.name)
            spread = sets.get(module.layers, range(layers)) if "{layer}" in module.name else (layers,)
            spread = range(self._sizes["blocks"]) if "{block}" in module.name else spread
            deep = "{depth}" in module.name  # of layers that stand behind all others
            spread = range(self._sizes["depths"]) if deep else spread
            experts = range(self._sizes["experts"]) if "{expert}" in module.name else range(1)
            for layer, expert in product(sorted(spread), experts):
                name = module.name.format(layer=layer, block=layer, depth=layer, expert=expert)
                key = names.stored_key(name, stacked=self._stacked)
                if self._singleton:
                    key = names.StoredKey(names.alone(name), ())
                count = names.layer_count(key.name) if self._stacked else None
                counts = [self._sizes[count]] if count else []
                counts += [len(experts)] if "{expert}" in module.name and not self._singleton else []
                shard = ".".join(map(str, key.index)) or "0", ".".join(map(str, counts)) or "1"
                owner = self.layout.expert_rank(expert, len(experts))
                position = -1 if beside else layers if deep else layer
                rank = self.layout.rank(0, self.layout.stage(position, layers), owner)
                file, file_name = self._file_for(rank, len(item))
                offset = file.size
                file.pwrite_later(offset, item)
                file.size += len(item)
                name = f"{self.prefix}{key.name}{EXTRA_STATE}/shard_{'_'.join(shard)}"
                self._objects.append(DistObject(name, file_name, offset, len(item)))

    def finish(self) -> None:
        output = self._output
        for file in output.files().values():
            file.write_pending()
        for payload, item in self._items:
            assert payload.crc32 is not None
            payload.file.pwrite(item.header(payload.crc32), item.offset)
            payload.file.pwrite(item.trailer(payload.crc32), item.payload_offset + item.nbytes)
        self._write_context()
        output.write(self._at(".metadata"), self._metadata())
        output.write(self._at("metadata.json"), torch_dist.METADATA_JSON)

    def _metadata(self) -> bytes:
        tensors = [
            DistTensor(name, dtype, shape, tuple(chunks))
            for name, (dtype, shape, chunks) in self._tensors.items()
        ]
        return torch_dist_writer.emit_metadata(tensors, self._objects)

    def _write_context(self) -> None:
        model, output = self._model, self._output
        tokenizer = {name: file for name, file in model.files.items() if name in TOKENIZER_FILES}
        for name, source in model.files.items():
            folder = "artifacts" if name == GENERATION_CONFIG else nemo2_context.TOKENIZER_FOLDER
            data = source if isinstance(source, bytes) else source.pread(source.size, 0)
            if name == tokenizer_files.CONFIG:
                data = tokenizer_files.for_transformers_4(data, name)
            output.write(f"context/{folder}/{name}", data)
        config_class, fields = self._config
        nemo = model.table.nemo
        context = nemo2_context.build_context(
            Symbol(nemo.module, nemo.model),
            Symbol(nemo.module, config_class),
            fields,
            self.layout,
            uneven=nemo2_layout.uneven_settings(self.layout, self._sizes["layers"]),
            has_tokenizer=bool(tokenizer),
            has_generation_config=GENERATION_CONFIG in model.files,
            model_arguments=dict(nemo.arguments),
        )
        for name, data in context.items():
            output.write(f"context/{name}", data)
        common: dict[str, Value] = {**_COMMON}
        if self._singleton:
            common["content_metadata"] = {**_CONTENT, "singleton_local_shards": True}
        output.write(self._at("common.pt"), torch_items.object_item(common))
