"""The state dict of one model-parallel rank, as NeMo 1 and its training runs save it.

With interleaved pipeline stages a run keeps ``model0``, ``model1`` ... beside a ``state_dict`` that is then
empty, each the nested dictionaries of one run of layers. Source: megatron_gpt_model.py,
``on_save_checkpoint``, and modules/common/megatron/language_model.py, ``state_dict_for_save_checkpoint``,
of NeMo 1.10 to 2.4.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, Final

from ...errors import CorruptCheckpoint
from ...formats.torch.checkpoint import StateDict, leaves, read_state_dict
from ...formats.torch.tensors import TensorRef
from ...stores.files import SourceFile
from ...tensors.stored import StoredTensor

_CHUNK: Final = re.compile(r"model\d+")


def read_rank(file: SourceFile) -> StateDict:
    """The state dict, with the runs of interleaved stages under names that begin with ``model0.`` and so on.

    Raises CorruptCheckpoint for a file with both whole stages and runs of them.
    """
    state = read_state_dict(file)
    chunks = {key: value for key, value in state.around.items() if _CHUNK.fullmatch(key)}
    if not chunks:
        return state
    tensors: dict[str, StoredTensor] = {}
    others: dict[str, Any] = {}
    for name, leaf in leaves(chunks, file.path):
        if isinstance(leaf, TensorRef) and not name.endswith("_extra_state"):
            tensors[name] = state.file.tensor(name, leaf)
        else:
            others[name] = leaf
    if tensors and state.tensors:
        raise CorruptCheckpoint(
            f"{file.path}: holds {next(iter(state.tensors))} of a whole stage and {next(iter(tensors))} of "
            "an interleaved one"
        )
    around = {key: value for key, value in state.around.items() if key not in chunks}
    return replace(
        state,
        tensors={**state.tensors, **tensors},
        others={**state.others, **others},
        around=around,
    )
