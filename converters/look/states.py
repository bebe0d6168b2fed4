"""What lies in a checkpoint beside the tensors that its reader opens: states of a run that torch saved.

``verify`` calls nothing complete that it did not open: a ``common.pt`` that is cut short makes Megatron fail,
however whole the weights are. What cannot be opened is named.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from ...errors import CorruptCheckpoint, UnsafeCheckpoint, UnsupportedError
from ...formats.torch.checkpoint import STATE_DICTS_KNOWN, TorchFile
from ...formats.torch.common import COMMON_KNOWN
from ...stores.files import Folder
from ..archive.archive import all_files

_STATES: Final = (".pt", ".pth", ".ckpt")
#: what Megatron reads of every distributed checkpoint
_COMMON: Final = "common.pt"
#: endings of files that hold numbers and that no reader of ours need have opened
_WEIGHTS: Final = (*_STATES, ".bin", ".distcp", ".safetensors", ".onnx", ".data", ".gguf", ".npz", ".h5")


def open_states(folder: Folder, held: Collection[str]) -> tuple[int, list[str]]:
    """Open what torch saved in ``folder`` and is not among the files ``held`` (names without folders):
    (bytes that agree with checksums of their own, names of files with numbers that were not opened).

    Raises CorruptCheckpoint for a file that is cut short or whose bytes changed.
    """
    done, left = 0, []
    for name in all_files(folder):
        if name.rpartition("/")[2] in held or not name.endswith(_WEIGHTS):
            continue
        if not name.endswith(_STATES):
            left.append(name)
            continue
        try:
            done += TorchFile(folder.file(name), known={**STATE_DICTS_KNOWN, **COMMON_KNOWN}).verify_crc()
        except (UnsafeCheckpoint, UnsupportedError) as error:  # unknown classes, or no file of torch's
            if name.rpartition("/")[2] == _COMMON:
                raise CorruptCheckpoint(
                    f"{error.message}, and Megatron reads it", hint="copy it again"
                ) from None
            left.append(name)
    return done, left
