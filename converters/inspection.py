"""What is in a checkpoint, from headers alone."""

from __future__ import annotations

import re
from pathlib import Path

from nemoconv.converters.base import Checkpoint
from nemoconv.converters.registry import open_checkpoint
from nemoconv.errors import UnsupportedError
from nemoconv.mappings.config_fields import Value


def inspect(path: str | Path, *, config: str | Path | None = None) -> dict[str, Value]:
    """Facts about the checkpoint at ``path`` as plain data; nothing but headers is read.

    A model that cannot be converted is described all the same, with the reason under ``problem``.
    """
    with open_checkpoint(path, config=config) as checkpoint:
        return describe(checkpoint)


def describe(checkpoint: Checkpoint) -> dict[str, Value]:
    dtypes: dict[str, dict[str, int]] = {}
    parameters = nbytes = 0
    for name in checkpoint.keys():  # noqa: SIM118 - not a mapping
        spec = checkpoint.spec(name)
        count = spec.nbytes // spec.dtype.itemsize
        entry = dtypes.setdefault(spec.dtype.name, {"tensors": 0, "parameters": 0})
        entry["tensors"] += 1
        entry["parameters"] += count
        parameters += count
        nbytes += spec.nbytes
    facts: dict[str, Value] = {
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        **{key: value for key, value in checkpoint.describe().items() if key != "files"},
        "parameters": parameters,
        "bytes": nbytes,
        "tensors": len(checkpoint.keys()),
        "dtypes": dtypes,
    }
    try:
        facts |= _model(checkpoint.view_for("hf"))
    except UnsupportedError as error:
        facts["problem"] = str(error)
    facts["tokenizer"] = sorted(checkpoint.tokenizer_files)
    facts["files"] = checkpoint.describe()["files"]
    return facts


def _model(checkpoint: Checkpoint) -> dict[str, Value]:
    model = checkpoint.model()
    config = model.config
    if not config:  # tensors of any class: their table only repeats their names
        return {}
    rows = max(
        (
            checkpoint.spec(name).shape[0]
            for rule in model.table.rules
            for name in ((rule.nemo, *rule.also) if checkpoint.side == "nemo" else (p.hf for p in rule.parts))
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
    """One row a tensor (those whose name ``pattern`` is found in): name, dtype, shape, bytes."""
    wanted = re.compile(pattern or "")
    rows = []
    for name in checkpoint.keys():  # noqa: SIM118
        if wanted.search(name):
            spec = checkpoint.spec(name)
            rows.append(
                {
                    "name": name,
                    "dtype": spec.dtype.name,
                    "shape": list(spec.shape),
                    "bytes": spec.nbytes,
                }
            )
    return rows
