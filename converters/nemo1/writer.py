"""Writes ``.nemo`` archives as NeMo 2.4, the last with Megatron GPT models, does: megatron-core's names in
a torch_dist checkpoint, which NeMo restores at any parallel layout.

Or with a state dict for each model-parallel rank: what NeMo from 1.20 on reads, and, with one rank, what
every tool for ``.nemo`` files reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Final

from ...errors import LayoutError
from ...formats.text import plain_yaml
from ...formats.torch import items as torch_items
from ...mappings.hf.fields import Value
from ...resharding.plan import Payload
from ...stores.output import OutputDirectory
from ...tensors.layout import Layout
from ..archive import archive as nemo_archive
from ..base import Model, Request
from ..nemo2.writer import NeMo2Sink
from ..ranks.writer import Rank, RankWriter
from . import build as nemo1_build

if TYPE_CHECKING:
    from ..bind import Bound

_FOLDER: Final = "model_weights"
_PREFIX = "model."
_EMBEDDING = "embedding.word_embeddings.weight"
_OUTPUT = "output_layer.weight"
#: modules of megatron-core that keep an ``_extra_state`` entry with and without TransformerEngine
_LINEAR = ".linear_"


class NeMo1Sink(NeMo2Sink):
    """What :class:`NeMo2Sink` writes, with a ``model_config.yaml`` instead of a context."""

    prefix = "model."

    def __init__(self, output: OutputDirectory, model: Model, layout: Layout) -> None:
        super().__init__(output, model, layout)
        section, self._members, self._notes = nemo1_build.build_tokenizer(model.files)
        self._yaml = nemo1_build.build_yaml(model.table, model.config, layout, model.sizes["vocab"], section)

    def begin(self, bound: Bound) -> None:
        bound.leave_out_never_read()

    def notes(self) -> Sequence[str]:
        return self._notes

    def _at(self, name: str) -> str:
        return f"{_FOLDER}/{name}"

    def reserve(self, requests: Sequence[Request]) -> Sequence[Payload]:
        _write_first(self._output, self._yaml, self._members)
        return super().reserve(requests)

    def _write_context(self) -> None:
        self._output.write(self._at("common.pt"), torch_items.object_item({}))


class NeMo1RankWriter(RankWriter):
    """``model_weights.ckpt`` by itself, in ``mp_rank_XX/`` or in ``tp_rank_XX_pp_rank_XXX/``."""

    keeps_everything = False

    def __init__(self, output: OutputDirectory, model: Model, layout: Layout) -> None:
        sizes = model.sizes
        if layout.expert_parallel_size > 1:
            raise LayoutError(
                "rank files of NeMo 1 hold all experts on every rank",
                hint="leave out --ep, or leave out --rank-files",
            )
        layout.check(sizes["layers"])
        family = nemo1_build.family_for(model.table)
        nemo1_build.check_stages(family, layout)
        self._dialect = family.dialect if family.own_ranks else None
        prefix = family.dialect.prefix
        tied = None
        if model.config.get("share_embeddings_and_output_weights"):
            tied = (self._named(_EMBEDDING), self._named(_OUTPUT))
        super().__init__(
            output,
            layout,
            sizes["layers"],
            lambda rank: _file_name(rank, layout.tensor_parallel_size, layout.pipeline_parallel_size),
            {},
            # NeMo's own layers keep none
            nothing=() if self._dialect else _extra_states(model, sizes),
            tied=tied,
            copies={prefix + copy: prefix + original for copy, original in family.dialect.copies},
        )
        section, self._members, self._told = nemo1_build.build_tokenizer(model.files, family.tokenizer_file)
        self._yaml = nemo1_build.build_yaml(
            model.table, model.config, layout, sizes["vocab"], section, ranks=True
        )

    def begin(self, bound: Bound) -> None:
        bound.leave_out_never_read()
        self._instances = {instance.nemo: instance for instance in bound.instances}

    def notes(self) -> Sequence[str]:
        return self._told

    def _named(self, name: str) -> str:
        return self._dialect.prefix + self._dialect.write(name) if self._dialect else _PREFIX + name

    def _key(self, name: str, fragment: int) -> str:
        return self._local(self._named(name), self._instances[name].layer)

    def reserve(self, requests: Sequence[Request]) -> Sequence[Payload]:
        _write_first(self._output, self._yaml, self._members)
        return super().reserve(requests)

    def finish(self) -> None:
        for file in self._output.files().values():
            file.write_pending()
        super().finish()


def _write_first(output: OutputDirectory, yaml: Mapping[str, Value], members: Mapping[str, bytes]) -> None:
    """The small members come first, so that who reads the archive as a stream meets them first."""
    small = {nemo_archive.CONFIG: plain_yaml.dumps(yaml), **members}
    for name, data in sorted(small.items()):
        file = output.file(name)
        file.size = len(data)
        file.pwrite_later(0, data)


def _file_name(rank: Rank, tensor_parallel_size: int, pipeline_parallel_size: int) -> str:
    tensor, stage = rank
    if pipeline_parallel_size > 1:
        return f"tp_rank_{tensor:02d}_pp_rank_{stage:03d}/{nemo_archive.WEIGHTS}"
    return (
        f"mp_rank_{tensor:02d}/{nemo_archive.WEIGHTS}" if tensor_parallel_size > 1 else nemo_archive.WEIGHTS
    )


def _extra_states(model: Model, sizes: Mapping[str, int]) -> Iterator[tuple[str, int | None]]:
    """(key, layer) of the entries that strict loading asks for."""
    table, layers = model.table, sizes["layers"]
    sets = table.layer_sets(model.config) if table.layer_sets else {}
    for module in table.modules:
        if _LINEAR not in module.name or any(model.config.get(k) != v for k, v in module.when):
            continue
        experts = range(sizes["experts"]) if "{expert}" in module.name else range(1)
        for layer, expert in product(sorted(sets.get(module.layers, range(layers))), experts):
            yield f"{_PREFIX}{module.name.format(layer=layer, expert=expert)}._extra_state", layer
    yield f"{_PREFIX}output_layer._extra_state", None
