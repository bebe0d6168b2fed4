"""NeMo 1's ``.nemo`` of Megatron language models: a tar archive, or the folder it was unpacked into."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from ...errors import (
    CorruptCheckpoint,
    MappingError,
    NemoconvError,
    UnsupportedError,
    UnsupportedFormat,
    some,
)
from ...formats.tar import TarFolder
from ...mappings import table_for
from ...mappings.hf.fields import INERT, Value, read_config
from ...mappings.nemo1 import families as nemo1_families
from ...mappings.nemo1 import fields_t5 as nemo1_fields_t5
from ...mappings.nemo1.families import NORM_WEIGHT
from ...mappings.table import Rule, Table
from ...stores.files import Folder, SourceDir, SourceFile
from ...tensors.dtypes import DType
from ...tensors.layout import Layout
from ...tensors.stored import StoredTensor
from .. import believed, manifest
from .. import mtp_layers as further_layers
from ..archive import archive as nemo_archive
from ..base import Checkpoint, Model, Piece, TensorSpec
from ..hf import tokenizer_files
from ..hf.checkpoint import GENERATION_CONFIG, hf_config, read_hf_config
from ..ranks.weights import RankWeights, find_ranks
from ..torch_dist.weights import DistWeights, open_dist_weights
from . import config as nemo1_config
from .rank_file import read_rank

#: of a distributed checkpoint, and what the names in it begin with
DIST_FOLDER: Final = "model_weights"
PREFIX: Final = "model."
_ADAPTER: Final = "adapter"
#: opens an archive, from its place, its files and model_config.yaml
View = Callable[[Path, Folder, Mapping[str, Any]], Checkpoint]
_EXPERT: Final = ".experts."


class NeMo1Checkpoint(Checkpoint):
    """An open ``.nemo``."""

    format = "nemo"
    side = "nemo"
    #: whether q, k and v of all heads of a rank lie one below the other
    _in_blocks = False
    #: why nobody knows the model, so that no tensor has a rule
    _refused: NemoconvError | None = None

    _views: Mapping[str, View] = MappingProxyType({})

    def __init__(
        self,
        path: Path,
        folder: Folder,
        yaml: Mapping[str, Any],
        *,
        config: str | Path | None = None,
        views: Mapping[str, View] = MappingProxyType({}),
    ) -> None:
        """``views`` are other ways to read the archive, by the formats that it is converted to."""
        self.path, self._folder, self._yaml, self._views = path, folder, yaml, views
        self._where = f"{path}: {nemo_archive.CONFIG}"
        self._hf = read_hf_config(config) if config is not None else None
        self._manifest = manifest.read(folder)
        self._weights: RankWeights | DistWeights
        if folder.exists(f"{DIST_FOLDER}/metadata.json"):
            self._weights = open_dist_weights(folder, DIST_FOLDER, PREFIX)
            self.layout = self._stated_layout()
        else:
            family = nemo1_config.family_of(yaml) or nemo1_families.GPT
            ranks = find_ranks(folder, nemo_archive.WEIGHTS)
            self._weights = RankWeights(folder, ranks, read_rank, family.dialect)
            self.layout = self._weights.layout
            self._check_layout()
        self._in_blocks = nemo1_fields_t5.in_blocks(yaml)
        self._rules: dict[str, Rule] | None = None
        self._sizes: dict[str, int] = {}
        #: norms that hold 1 + weight, where the table means the weight
        self._shifted: set[str] | None = None

    def _stated_layout(self) -> Layout:
        def size(name: str) -> int:
            value = self._yaml.get(f"{name}_model_parallel_size")
            return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 1

        return Layout(size("tensor"), size("pipeline"), size("expert"))

    def _check_layout(self) -> None:
        stated = self._stated_layout()
        held = self.layout
        for name in ("tensor_parallel_size", "pipeline_parallel_size"):
            if getattr(stated, name) != getattr(held, name):
                key = name.replace("_parallel", "_model_parallel")
                raise CorruptCheckpoint(
                    f"{self._where}: says {key}={getattr(stated, name)}, but weights of "
                    f"{getattr(held, name)} ranks are there",
                    hint="ranks are missing, or the config is of another checkpoint",
                )

    # tensors

    def keys(self) -> Sequence[str]:
        return list(self._weights.names())

    def spec(self, name: str) -> TensorSpec:
        weights, rule = self._weights, self._rule(name)
        if not isinstance(weights, RankWeights):
            return TensorSpec(name, *weights.spec(name))
        if rule is not None:
            return TensorSpec(name, weights.dtype(name), rule.view.shape(self._sizes_of(name, rule)))
        self._check_joins(name)
        whole = weights.stored(name)
        return TensorSpec(name, whole.dtype, whole.shape)

    def dtype(self, name: str) -> DType:
        weights = self._weights
        return weights.dtype(name) if isinstance(weights, RankWeights) else weights.spec(name)[0]

    def joins(self, name: str) -> bool:
        weights = self._weights
        if not isinstance(weights, RankWeights) or self._rule(name) is not None:
            return True
        cut = _EXPERT in name and self._stated_layout().expert_parallel_size > 1
        return weights.tensor_parallel_size == 1 and not cut

    def pieces(self, name: str) -> Sequence[Piece]:
        if isinstance(self._weights, RankWeights):
            return self._weights.held(name)
        return [Piece(name, None, self._weights.stored(name))]

    def _check_joins(self, name: str) -> None:
        """Raise, with the reason, where ranks hold a tensor and no rule says how it is cut between them:
        then a piece of it and a replica look alike. Raises KeyError for an unknown name."""
        if self.pieces(name) and self.joins(name):
            return
        why = self._refused or MappingError(f"no rule of the model is for {name}")
        raise type(why)(
            f"{self.path}: what ranks hold of {name} cannot be joined without its rule: {why.message}",
            hint=why.hint or "convert --to safetensors to have what each rank holds",
        )

    def stored(self, name: str) -> StoredTensor:
        rule = self._rule(name)
        if rule is None:
            self._check_joins(name)
        if not isinstance(self._weights, RankWeights):
            tensor = self._weights.stored(name)
        else:
            sizes = self._sizes_of(name, rule) if rule else None
            tensor = self._weights.stored(name, rule, sizes, in_blocks=self._in_blocks)
        if not self._shifted or name not in self._shifted:
            return tensor
        from ...resharding.decode.offset_norms import less_one

        return less_one(tensor)

    def _rule(self, name: str) -> Rule | None:
        """The rule of a tensor; None while nobody knows the model, or where it has none."""
        if self._rules is None and self._refused is None:
            try:
                self.model()
            except (UnsupportedError, CorruptCheckpoint) as error:
                self._refused = error
        return (self._rules or {}).get(name)

    def _sizes_of(self, name: str, rule: Rule) -> dict[str, int]:
        """Sizes of a rule's factors; the vocabulary's are told by the files, with their padding."""
        if rule.pad is None or not isinstance(self._weights, RankWeights):
            return self._sizes
        return {**self._sizes, rule.pad: self._weights.rows(name)}

    def _set_rules(self, table: Table, config: Mapping[str, Value]) -> None:
        sizes = table.sizes(config)
        held = len(self._weights.names())
        if isinstance(self._weights, RankWeights) and sizes["layers"] > held:  # where each is by itself
            raise CorruptCheckpoint(f"{self._where}: says num_layers={sizes['layers']}, of {held} tensors")
        rules: dict[str, Rule] = {}
        for instance in table.instances(config, sizes):
            for template in (instance.rule.nemo, *instance.rule.also):
                rules[template.format(**instance.index)] = instance.rule
        for copy, original in table.tied:
            if original in rules:
                rules.setdefault(copy, rules[original])
        self._rules, self._sizes = rules, sizes

    def copies(self) -> Iterator[tuple[StoredTensor, StoredTensor]]:
        if isinstance(self._weights, RankWeights):
            yield from self._weights.repeated

    def _replicas(self) -> Iterator[tuple[StoredTensor, StoredTensor]]:
        """What every tensor-parallel rank holds whole (norms, biases): (another rank's, the first one's)."""
        if not isinstance(self._weights, RankWeights):
            return
        for name in self._weights.names():
            rule = self._rule(name)
            if rule is not None and rule.cut is None:
                first, *others = self._weights.pieces(name)
                for other in others:
                    yield other, first

    # the model

    def model(self, allow_ignored: Sequence[str] = ()) -> Model:
        files: dict[str, SourceFile | bytes] = dict(self.tokenizer_files)
        added = nemo1_config.tokenizer_config(self.tokenizer_files)
        if added is not None:
            files[tokenizer_files.CONFIG] = added
        if self._hf is not None:
            table = table_for(self._hf, str(self.path))
            config, passed = read_config(table.fields, self._hf, allow_ignored)
            further_layers.settle(table, config, self._weights.names(), allow_ignored, told={})
            inert = {key: self._hf[key] for key in passed if key in INERT}
        else:
            nemo1_config.check_family(self._yaml, self._where)
            self._refuse_adapters()
            table, config, plain_norms = nemo1_config.model_of(
                self._yaml,
                self._where,
                held=set(self.keys()),
                written_as=(self._manifest or {}).get("architecture"),
                allow_ignored=allow_ignored,
            )
            self._settle(table, config)
            if plain_norms and self._shifted is None:
                self._shifted = {name for name in self.keys() if NORM_WEIGHT.fullmatch(name)}
            inert = believed.inert_keys(self._manifest, self.tokenizer_files.get(GENERATION_CONFIG))
        self._set_rules(table, config)
        self._check_frequencies(config)
        ignored = sorted(key for key in allow_ignored if key in self._yaml)
        return Model(table, config, inert, files, ignored)

    def _refuse_adapters(self) -> None:
        adapters = [name for name in self._weights.names() if _ADAPTER in name]
        if adapters:
            raise _only_adapters(self.path, adapters, len(self._weights.names()) - len(adapters))

    def _settle(self, table: Table, config: dict[str, Value]) -> None:
        """The true vocabulary, and what else NeMo's config cannot say."""
        rows = next((self._rows(r.nemo) for r in table.rules if r.pad and r.nemo in self.keys()), None)
        yaml, files = self._yaml, self.tokenizer_files
        believed.settle(
            self._manifest,
            table,
            config,
            rows,
            lambda: nemo1_config.true_vocab_size(yaml, files, rows, self.layout),
        )

    def _rows(self, name: str) -> int:
        weights = self._weights
        return weights.rows(name) if isinstance(weights, RankWeights) else weights.spec(name)[1][0]

    def _check_frequencies(self, config: Mapping[str, Value]) -> None:
        """Rotary frequencies are computed from the config; where a file holds them too, they must agree,
        since NeMo would take the file's."""
        if not isinstance(self._weights, RankWeights) or config.get("rope_scaling"):
            return
        from ...tensors.read import read_box

        for name, tensor in self._weights.derived:
            size = 2 * tensor.shape[0]
            expected = [float(config["rotary_base"]) ** (-2 * i / size) for i in range(tensor.shape[0])]
            found = read_box(tensor, (0,), tensor.shape).astype("float64")
            if any(abs(a - b) > 0.01 * b + 1e-7 for a, b in zip(found.tolist(), expected, strict=True)):
                raise UnsupportedFormat(
                    f"{self.path}: {name} holds other frequencies than rotary_base="
                    f"{config['rotary_base']:g} gives",
                    hint="the model was made with a scaling that its config does not state",
                )

    @property
    def config(self) -> Mapping[str, Value]:
        return self._hf if self._hf is not None else hf_config(self.model())

    @property
    def tokenizer_files(self) -> Mapping[str, SourceFile]:
        return nemo1_config.tokenizer_of(self._folder, self._yaml)

    # facts

    def skipped(self) -> Mapping[str, int]:
        return self._weights.skipped

    def notes(self) -> Sequence[str]:
        notes = []
        if isinstance(self._folder, TarFolder) and self._folder.compressed:
            notes.append("the archive is compressed, so it was inflated into a scratch file first")
        tokenizer = self._yaml.get("tokenizer")
        if isinstance(tokenizer, dict) and not self.tokenizer_files and tokenizer.get("type"):
            name = str(tokenizer["type"])[:200]
            notes.append(f"the archive holds no tokenizer, only the name of one: {name}")
        if self._shifted:
            notes.append(
                f"the weights of {len(self._shifted)} norms are kept with 1 added, for layers that do not "
                "add it; it is taken off again, in float32"
            )
        differing = self._differing
        if differing:  # NeMo's own tools take the first rank's, too
            notes.append(
                f"{len(differing)} tensors that ranks should share differ between them; those of "
                f"tensor-parallel rank 0 are taken: {some(differing, 3)}"
            )
        return notes

    @cached_property
    def _differing(self) -> list[str]:
        """Names of what ranks should share and do not."""
        return sorted({copy.name for copy, first in self._replicas() if _difference(copy, first)})

    def view_for(self, name: str) -> Checkpoint:
        """Under NeMo's own names, where all there is to do is to move tensors as they are; or as adapters."""
        view = self._views.get(name)
        return view(self.path, self._folder, self._yaml) if view is not None else self

    def describe(self) -> dict[str, Value]:
        version = self._yaml.get("nemo_version", "(version not recorded)")
        written = self._manifest or {}
        files = {file.name: file.size for file in self._folder.opened()}
        return {
            "writer": written.get("written_by") or f"NeMo {version}, {self._weights.writer}",
            "NeMo classes": str(self._yaml.get("target", "not recorded")),
            "layout": str(self.layout),
            "files": files,
            "other contents": dict(self._weights.skipped),
        }

    # another layout

    @property
    def weights(self) -> RankWeights | DistWeights:
        """The tensors as they lie: cut by rank, or in a distributed checkpoint."""
        return self._weights

    def keep_norms(self) -> None:
        """Norms stay as they are stored: the config goes along, and says how they are meant."""
        self._shifted = set()

    @property
    def folder(self) -> Folder:
        return self._folder

    @property
    def yaml(self) -> Mapping[str, Any]:
        return self._yaml

    def rows(self, name: str) -> int:
        """The length of a tensor's first axis, of all ranks together."""
        return self._rows(name)

    @property
    def vocab_divisor(self) -> int | None:
        """NeMo pads the tokenizer's vocabulary, unless the config overrides its size."""
        divisor = self._yaml.get("make_vocab_size_divisible_by", 128)
        if self._yaml.get("override_vocab_size") is not None or not isinstance(divisor, int) or divisor < 1:
            return None
        return divisor

    def open_folder(self) -> Folder | None:
        if isinstance(self._folder, TarFolder):  # what we write is never compressed
            return None if self._folder.compressed else TarFolder(self.path)
        return SourceDir(self.path)

    def verify_checksums(self) -> Iterator[tuple[str, int]]:
        yield from self._weights.verify_checksums()
        for copy, first in self._replicas():
            if difference := _difference(copy, first):
                raise CorruptCheckpoint(f"{self.path}: ranks hold {copy.name} differently: {difference}")

    def close(self) -> None:
        self._folder.close()


def _difference(a: StoredTensor, b: StoredTensor) -> str | None:
    from ...resharding.equal import first_difference

    if a.shape != b.shape or a.dtype != b.dtype:
        return "their shapes or dtypes differ"
    return first_difference(a, b)


def _only_adapters(path: object, adapters: Sequence[str], others: int) -> UnsupportedFormat:
    """What to say of adapters that are asked for as a whole model."""
    said = f"{path}: holds {len(adapters)} tensors of adapters (PEFT), such as {adapters[0]}"
    if others:
        return UnsupportedFormat(said, hint="merge them with their base model in NeMo first")
    return UnsupportedFormat(
        f"{said}, and no model",
        hint="convert --to peft, which writes them for the model that they were trained for",
    )
