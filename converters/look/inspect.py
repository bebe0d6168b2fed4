"""What is in a checkpoint, from headers alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ...errors import UnsupportedError
from ...mappings.hf.fields import Value
from ..abilities import Tokenized, seen_by
from ..base import Checkpoint, TensorSpec, holdings
from ..registry import open_checkpoint


def inspect(path: str | Path, *, config: str | Path | None = None) -> dict[str, Value]:
    """Facts about the checkpoint at ``path`` as plain data; nothing but headers is read.

    A model that cannot be converted is described all the same, with the reason under ``problem``.
    """
    with open_checkpoint(path, config=config) as checkpoint:
        return describe(checkpoint)


def describe(checkpoint: Checkpoint) -> dict[str, Value]:
    rows = list(holdings(checkpoint))
    facts: dict[str, Value] = {
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        **{key: value for key, value in checkpoint.describe().items() if key != "files"},
        **_counts(rows, len(checkpoint.keys())),
    }
    try:
        facts |= _model(seen_by(checkpoint, "hf"))
    except UnsupportedError as error:
        facts["problem"] = str(error)
    facts["tokenizer"] = sorted(checkpoint.tokenizer_files) if isinstance(checkpoint, Tokenized) else []
    facts["files"] = checkpoint.describe()["files"]
    return facts


def _counts(rows: Sequence[tuple[int | None, TensorSpec]], tensors: int) -> dict[str, Value]:
    """How much there is. Pieces of ranks that no rule joins may be parts or replicas, so that the number of
    parameters is not known of them."""
    pieces = sum(rank is not None for rank, _ in rows)
    several, each = ("pieces", "elements") if pieces else ("tensors", "parameters")
    dtypes: dict[str, dict[str, int]] = {}
    for _, spec in rows:
        entry = dtypes.setdefault(spec.dtype.name, {several: 0, each: 0})
        entry[several] += 1
        entry[each] += spec.nbytes // spec.dtype.itemsize
    nbytes = sum(spec.nbytes for _, spec in rows)
    if not pieces:
        parameters = sum(entry["parameters"] for entry in dtypes.values())
        return {"parameters": parameters, "bytes": nbytes, "tensors": tensors, "dtypes": dtypes}
    return {
        "parameters": None,
        "bytes": nbytes,
        "tensors": tensors,
        "pieces": pieces,
        "not joined": f"{pieces:,} pieces of ranks, parts or replicas: no rule says what they make together",
        "dtypes": dtypes,
    }


def _model(checkpoint: Checkpoint) -> dict[str, Value]:
    model = checkpoint.model()
    config = model.config
    if not config:  # tensors of any class: their table only repeats their names
        return {}
    rows = max(
        (
            checkpoint.spec(name).shape[0]
            for rule in model.table.rules
            for name in (
                (rule.nemo, *rule.other_names) if checkpoint.side == "nemo" else (p.hf for p in rule.parts)
            )
            if rule.pad and name in set(checkpoint.keys())
        ),
        default=config["vocab_size"],
    )
    return {
        "architecture": model.table.architecture,
        "model": {key: value for key, value in config.items() if key not in ("vocab_size", "rope_scaling")},
        "vocabulary": {"true": config["vocab_size"], "rows": rows},
        **({"rope": config["rope_scaling"] or "unscaled"} if "rope_scaling" in config else {}),
    }


def tensor_rows(checkpoint: Checkpoint, pattern: str | None = None) -> list[dict[str, Value]]:
    """One row a tensor (those whose name ``pattern`` is found in): name, dtype, shape, bytes; where no rule
    joins what ranks hold, one a piece, with its rank."""
    wanted = re.compile(pattern or "")
    return [
        {
            "name": spec.name,
            **({"rank": rank} if rank is not None else {}),
            "dtype": spec.dtype.name,
            "shape": list(spec.shape),
            "bytes": spec.nbytes,
        }
        for rank, spec in holdings(checkpoint)
        if wanted.search(spec.name)
    ]
