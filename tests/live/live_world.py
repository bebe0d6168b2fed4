"""Worlds of ranks for tests of live resharding, and the shards that their ranks give and expect."""

from __future__ import annotations

import json
import selectors
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import children
import numpy
import tiny

from nemoconv.converters.registry import open_checkpoint
from nemoconv.converters.run.convert import convert
from nemoconv.mappings import load_table
from nemoconv.mappings.hf.fields import read_config

LLAMA = {
    **tiny.CONFIG,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 4,
    "vocab_size": 38,
}
MOE = tiny.MOE_CONFIG
Run = Callable[..., list[dict[str, Any]]]


class Ranks:
    """The process that forks worlds of ranks: torch is imported once."""

    def __init__(self, log: Path) -> None:
        self._log = log
        with open(log, "w") as errors:
            script = str(Path(__file__).with_name("live_ranks.py"))
            self._process = children.start([sys.executable, script], stderr=errors)

    def run(self, **job: Any) -> list[dict[str, Any]]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._process.stdout, selectors.EVENT_READ)  # type: ignore[arg-type]
            assert waiting.select(120), f"no answer: {self._log.read_text()[-2000:]}"
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        assert line, self._log.read_text()[-2000:]
        answers = json.loads(line)
        failed = [f"rank {rank}: {a['failed']}" for rank, a in enumerate(answers) if "failed" in a]
        assert not failed, "\n".join(failed)
        return answers

    def close(self) -> None:
        children.end([self._process])


def hf_names(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    table = load_table(config["model_type"])
    model, _ = read_config(table.fields, config)
    sizes = table.sizes(model)
    return {
        part.hf.format(**instance.index): part.shape(sizes)
        for instance in table.instances(model, sizes)
        for part in instance.rule.parts
        if instance.in_hf
    }


def hf_shard(name: str, array: numpy.ndarray, tp: int, rank: int) -> numpy.ndarray:
    """How inference engines cut a Hugging Face tensor: rows of q, k, v, gate, up; columns of o and down."""
    if "norm" in name or "mlp.gate.weight" in name:
        return array
    if "embed" in name or "lm_head" in name:
        rows = -(-array.shape[0] // (2 * tp)) * 2  # Megatron pads this vocabulary to a multiple of 2 * tp
        rows = array.shape[0] // tp if array.shape[0] % tp == 0 else rows
        return array[rank * rows : (rank + 1) * rows]
    return numpy.split(array, tp, axis="o_proj" in name or "down_proj" in name)[rank]


def rank_tensors(folder: Path, tp: int) -> list[dict[str, numpy.ndarray]]:
    """What each tensor-parallel rank's file of a NeMo 2 directory holds, as in that rank's memory."""
    held: list[dict[str, numpy.ndarray]] = [{} for _ in range(tp)]
    with open_checkpoint(folder) as checkpoint:
        for name in list(checkpoint.keys()):
            boxes: dict[int, list[tuple[tuple[int, ...], numpy.ndarray]]] = {}
            for extent in checkpoint.stored(name).extents:
                rank = int(Path(extent.file.name).name.split("_")[2])
                index = tuple(slice(a, a + n) for a, n in zip(extent.start, extent.shape, strict=True))
                array = checkpoint.read(name, index)
                boxes.setdefault(rank, []).append((extent.start, array.view("u2")))
            for rank in range(tp):
                mine = sorted(boxes[rank if len(boxes) > 1 else 0], key=lambda box: box[0])
                starts = numpy.array([start for start, _ in mine])
                axis = int(numpy.argmax((starts != starts[0]).any(0))) if len(mine) > 1 else 0
                held[rank][name] = numpy.concatenate([array for _, array in mine], axis)
    return held


def prepare(folder: Path, config: dict[str, Any], seed: int) -> str:
    """The shards of one model on disk: nemo-<tp>-<rank>.npz and hf-<tp>-<rank>.npz, as 16-bit numbers."""
    arrays = {
        name: tiny.bits(shape, "bfloat16", seed + number)
        for number, (name, shape) in enumerate(hf_names(config).items())
    }
    tiny.write(folder / "hf", config, arrays=arrays)
    for tp in (1, 2, 4):
        convert(folder / "hf", folder / f"tp{tp}", to="nemo2", tensor_parallel_size=tp)
        for rank, tensors in enumerate(rank_tensors(folder / f"tp{tp}", tp)):
            numpy.savez(folder / f"nemo-{tp}-{rank}.npz", **tensors)
            shards = {name: hf_shard(name, array, tp, rank) for name, array in arrays.items()}
            numpy.savez(folder / f"hf-{tp}-{rank}.npz", **shards)
    return str(folder)


def job_of(
    do: str,
    config: dict[str, Any],
    data: str,
    source: dict[str, Any],
    target: dict[str, Any],
    **given: Any,
) -> dict[str, Any]:
    """What :meth:`Ranks.run` is to do; all ranks take part unless told."""
    world = given.pop("world", None) or max(size(source), size(target))
    everyone = list(range(world))
    stated = {
        "do": do,
        "world": world,
        "data": data,
        "config": config,
        "layers": config["num_hidden_layers"],
        "experts": config.get("num_experts", 0),
        "tied": config["tie_word_embeddings"],
        "source": source,
        "target": target,
    }
    return (
        stated | {"mixed": False, "source_ranks": everyone, "target_ranks": everyone, "options": {}} | given
    )


def size(sizes: dict[str, Any]) -> int:
    experts = sizes.get("etp", sizes.get("tp", 1)) * sizes.get("ep", 1)
    return max(sizes.get("tp", 1), experts) * sizes.get("pp", 1)


def equal(answers: list[dict[str, Any]]) -> bool:
    assert [answer["different"] for answer in answers] == [[]] * len(answers)
    return True


T1, T2, T4 = {"tp": 1}, {"tp": 2}, {"tp": 4}
P2, P4, T2P2 = {"pp": 2}, {"pp": 4}, {"tp": 2, "pp": 2}
HF_TARGET, HF_SOURCE = {"target_names": "hf"}, {"source_names": "hf"}
