"""What a package that adds a format or an architecture imports, and the only module it should import from:
names here stay where they are, while files inside this package may move.

A format is a :class:`Format` with a :class:`Checkpoint` to read from and a :class:`Sink` to write into,
registered under the entry point group ``nemoconv.converters``; an architecture is an :class:`Architecture`
under ``nemoconv.mappings``, most often made by :func:`llama_like`. What only some checkpoints can do is a
protocol of its own, such as :class:`HasOptimizer`. ``nemoconv.testing`` has the tests that they inherit.
"""

from __future__ import annotations

from .converters.abilities import (
    Checksummed,
    HasOptimizer,
    Layered,
    PadsVocabulary,
    Quantized,
    Repeating,
    Tokenized,
    Viewed,
)
from .converters.base import Checkpoint, HeldTensors, Model, Request, TensorSpec
from .converters.format import Format, Options
from .converters.hf.checkpoint import hf_config
from .converters.options import CONFIG, MAX_SHARD_NBYTES, VOCABULARY, Option
from .converters.sink import Sink
from .converters.step import Binding, Step
from .errors import (
    CorruptCheckpoint,
    LayoutError,
    MappingError,
    NemoconvError,
    OutputError,
    UnsafeCheckpoint,
    UnsupportedArchitecture,
    UnsupportedConfig,
    UnsupportedFormat,
    UsageError,
)
from .formats.text.plain_json import loads_object as parse_json
from .mappings import described, load_table, table_for
from .mappings.architecture import Architecture
from .mappings.blocks.attention import Attention
from .mappings.blocks.mlp import Mixture
from .mappings.blocks.names import Names
from .mappings.blocks.stack import Blocks, Stack
from .mappings.hf.fields import Field, Fixed, read_config, write_config
from .mappings.llama_like import llama_like
from .mappings.nemo1.entry import Nemo1
from .mappings.nemo2.entry import Nemo2
from .mappings.table import Part, Rule, Table
from .resharding.plan import Payload
from .stores.files import SourceDir, SourceFile
from .stores.output import OutputDirectory, OutputFile
from .tensors.dtypes import BY_NAME as DTYPES
from .tensors.dtypes import DType
from .tensors.layout import Layout
from .tensors.stored import Extent, StoredTensor, contiguous_strides

__all__ = [
    "CONFIG",
    "DTYPES",
    "MAX_SHARD_NBYTES",
    "VOCABULARY",
    "Architecture",
    "Attention",
    "Binding",
    "Blocks",
    "Checkpoint",
    "Checksummed",
    "CorruptCheckpoint",
    "DType",
    "Extent",
    "Field",
    "Fixed",
    "Format",
    "HasOptimizer",
    "HeldTensors",
    "Layered",
    "Layout",
    "LayoutError",
    "MappingError",
    "Mixture",
    "Model",
    "Names",
    "Nemo1",
    "Nemo2",
    "NemoconvError",
    "Option",
    "Options",
    "OutputDirectory",
    "OutputError",
    "OutputFile",
    "PadsVocabulary",
    "Part",
    "Payload",
    "Quantized",
    "Repeating",
    "Request",
    "Rule",
    "Sink",
    "SourceDir",
    "SourceFile",
    "Stack",
    "Step",
    "StoredTensor",
    "Table",
    "TensorSpec",
    "Tokenized",
    "UnsafeCheckpoint",
    "UnsupportedArchitecture",
    "UnsupportedConfig",
    "UnsupportedFormat",
    "UsageError",
    "Viewed",
    "contiguous_strides",
    "described",
    "hf_config",
    "llama_like",
    "load_table",
    "parse_json",
    "read_config",
    "table_for",
    "write_config",
]
