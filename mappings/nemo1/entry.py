"""What NeMo 1's model_config.yaml says of an architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from ..hf.fields import Value

#: the one layer spec of NeMo's that heeds ``qk_layernorm``
BLOCK_SPEC: Final[Mapping[str, Value]] = {"name": "decoder_block_gpt"}


@dataclass(frozen=True, slots=True)
class Nemo1:
    """That NeMo 1 has an architecture: it does not follow, so it is stated, and proved.

    ``family``: which of its model classes can be told to be it, see :mod:`nemoconv.mappings.nemo1.families`.
    ``words`` are what model_config.yaml says of it besides the fields of its table, and of no other
    architecture; ``written`` words without which NeMo builds other layers than the fields say: written, but
    not asked for; ``implied`` fields that these words or the class itself say; ``customized`` fields that lie
    in mcore_customization_config. ``plain_norms``: it is also found with norms that hold 1 + weight, for
    layers that do not add the 1 themselves. ``read_as``: an architecture that the same words may say, and
    that is meant then. ``only_ranks``: only files cut by rank can hold it.
    """

    family: str = "gpt"
    words: Mapping[str, Value] = field(default_factory=dict, hash=False)
    written: Mapping[str, Value] = field(default_factory=dict, hash=False)
    implied: Mapping[str, Value] = field(default_factory=dict, hash=False)
    customized: tuple[str, ...] = ()
    plain_norms: bool = False
    read_as: str = ""
    only_ranks: bool = False
