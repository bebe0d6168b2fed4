"""``common.pt`` and other objects of torch.save that are no model: classes that are known by name only."""

from __future__ import annotations

from typing import Any, Final

from ...errors import CorruptCheckpoint
from .pickles import Known, PickledDict, Stub, check_bounded
from .tensors import TENSORS_KNOWN
from .zip import Archive

_RERUN: Final = "megatron.core.rerun_state_machine"

#: classes met in common.pt, all of them inert. Source: megatron/core/safe_globals.py of 0.14 to
#: 0.16 (SAFE_GLOBALS), and numpy's own pickles (both names of its core module)
COMMON_KNOWN: Final[Known] = {
    **TENSORS_KNOWN,
    **dict.fromkeys(
        [
            ("argparse", "Namespace"),
            ("types", "SimpleNamespace"),
            ("pathlib", "PosixPath"),
            ("pathlib", "Path"),
            ("pathlib", "PurePosixPath"),
            ("pathlib._local", "PosixPath"),
            ("signal", "Signals"),
            ("_io", "BytesIO"),
            ("io", "BytesIO"),
            ("_codecs", "encode"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy.core.multiarray", "scalar"),
            ("numpy._core.multiarray", "scalar"),
            ("numpy._core.numeric", "_frombuffer"),
            ("numpy.core.numeric", "_frombuffer"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.dtypes", "UInt32DType"),
            ("torch._C", "Generator"),
            ("megatron.core.enums", "ModelType"),
            ("megatron.core.transformer.enums", "AttnBackend"),
            ("megatron.core.transformer.enums", "CudaGraphModule"),
            ("megatron.core.transformer.enums", "CudaGraphScope"),
            ("megatron.core.transformer.enums", "InferenceCudaGraphScope"),
            ("megatron.core.optimizer.optimizer_config", "OptimizerConfig"),
            (_RERUN, "RerunDiagnostic"),
            (_RERUN, "RerunMode"),
            (_RERUN, "RerunState"),
        ],
        Stub,
    ),
    ("collections", "defaultdict"): PickledDict,
    # factories of a defaultdict, and Python 2's names of them
    **dict.fromkeys(
        [(m, n) for m in ("builtins", "__builtin__") for n in ("dict", "list", "set", "int")], Stub
    ),
}


class _Memory:
    __slots__ = ("data", "where")

    def __init__(self, data: bytes, where: str) -> None:
        self.data = data
        self.where = where

    def pread(self, size: int, offset: int) -> bytes:
        if size < 0 or offset < 0 or offset + size > len(self.data):
            raise CorruptCheckpoint(f"{self.where}: ends at byte {len(self.data):,}")
        return self.data[offset : offset + size]


def read_object(data: bytes, *, known: Known = COMMON_KNOWN, where: str) -> Any:
    """The object of a whole torch.save archive in memory, safe to walk; tensors are TensorRef."""
    value = Archive(_Memory(data, where), 0, len(data), where).load(known)
    check_bounded(value, where)
    return value
