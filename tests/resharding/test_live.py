"""Live resharding between processes: every rank's bits are those of the checkpoint cut on disk."""

from __future__ import annotations

import json
import pickle
import selectors
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import tiny

from nemoconv.converters.conversion import convert
from nemoconv.converters.registry import open_checkpoint
from nemoconv.errors import LayoutError, UsageError
from nemoconv.mappings import load_table
from nemoconv.mappings.config_fields import read_config
from nemoconv.resharding import Layout, placements, plan_reshard
from nemoconv.resharding.live import model_config
from nemoconv.resharding.live_schedule import schedule

LLAMA = {
    **tiny.CONFIG,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 4,
    "vocab_size": 38,
}
TIED = {**LLAMA, "tie_word_embeddings": True}
MOE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_hidden_layers": 4,
    "hidden_size": 16,
    "moe_intermediate_size": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 36,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
MODELS = {"llama": LLAMA, "tied": TIED, "moe": MOE}
Run = Callable[..., list[dict[str, Any]]]


class Ranks:
    """The process that forks worlds of ranks: torch is imported once."""

    def __init__(self, log: Path) -> None:
        self._log = log
        with open(log, "w") as errors:
            script = str(Path(__file__).with_name("live_ranks.py"))
            self._process = subprocess.Popen(
                [sys.executable, script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

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
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    pytest.importorskip("torch")
    world = Ranks(tmp_path_factory.mktemp("ranks") / "log")
    yield world
    world.close()


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


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("live")
    made = {name: prepare(folder / name, config, 0) for name, config in MODELS.items()}
    return made | {"llama again": prepare(folder / "again", LLAMA, 1000)}


@pytest.fixture
def run(ranks: Ranks, data: dict[str, str]) -> Run:
    def go(do: str, model: str, source: dict[str, Any], target: dict[str, Any], **job: Any) -> Any:
        config = MODELS[model]
        world = job.pop("world", None) or max(size(source), size(target))
        everyone = list(range(world))
        return ranks.run(
            do=do,
            world=world,
            data=data[model],
            steps=[data["llama again"], data["llama"]],
            config=config,
            layers=config["num_hidden_layers"],
            experts=config.get("num_experts", 0),
            tied=config["tie_word_embeddings"],
            source=source,
            target=target,
            mixed=job.pop("mixed", False),
            source_ranks=job.pop("source_ranks", everyone),
            target_ranks=job.pop("target_ranks", everyone),
            options=job.pop("options", {}),
            **job,
        )

    return go


def size(sizes: dict[str, Any]) -> int:
    experts = sizes.get("etp", sizes.get("tp", 1)) * sizes.get("ep", 1)
    return max(sizes.get("tp", 1), experts) * sizes.get("pp", 1)


def equal(answers: list[dict[str, Any]]) -> bool:
    assert [answer["different"] for answer in answers] == [[]] * len(answers)
    return True


T1, T2, T4 = {"tp": 1}, {"tp": 2}, {"tp": 4}
P2, P4, T2P2 = {"pp": 2}, {"pp": 4}, {"tp": 2, "pp": 2}
HF_TARGET, HF_SOURCE = {"target_names": "hf"}, {"source_names": "hf"}


@pytest.mark.parametrize(
    ("model", "source", "target", "job"),
    [
        ("llama", T2, P2, {}),
        ("llama", P2, T2, {"mixed": True}),
        ("llama", T1, T2, {"world": 2}),  # the source is held twice
        ("llama", T2, T1, {"world": 2}),
        ("tied", T2, P2, {}),
        ("tied", P2, T2, {}),
        ("llama", T2, T1, {"world": 3, "source_ranks": [0, 2], "target_ranks": [1]}),
        ("llama", T1, P2, {"world": 3, "source_ranks": [1], "target_ranks": [2, 0], "mixed": True}),
        ("llama", T4, {"pp": 2, "vpp": 2}, {}),
        ("llama", {"pp": 2, "vpp": 2}, {"tp": 2, "pp": 2}, {}),
        ("tied", {"pp": 2, "vpp": 2}, {"pp": 4}, {}),
        ("llama", {"pp": 2, "stages": [3, 1]}, {"tp": 2, "pp": 2, "stages": [0, 4]}, {}),
        ("moe", {"ep": 2}, T2, {"mixed": True}),
        ("moe", {"tp": 2, "ep": 2}, P4, {}),
        ("moe", {"ep": 4}, {"tp": 2, "etp": 1, "ep": 2, "pp": 2}, {"world": 4}),
        ("moe", {"tp": 2, "ep": 2, "pp": 2}, T4, {"world": 8}),
        ("moe", {"ep": 2, "pp": 2}, {"tp": 4, "etp": 1, "ep": 4}, {"source_ranks": [5, 1, 7, 3],
            "target_ranks": [0, 2, 4, 6], "world": 8}),
        ("llama", T2P2, T1, {**HF_TARGET}),
        ("llama", T4, T4, {**HF_TARGET}),
        ("llama", T1, T2, {**HF_SOURCE, "world": 4}),
        ("moe", T2, {"ep": 2}, {**HF_TARGET}),
        ("moe", {"tp": 2}, {"ep": 2}, {**HF_SOURCE, "mixed": True}),
    ],
    ids=lambda value: "-".join(f"{k}{v}" for k, v in value.items()) if isinstance(value, dict) else value,
)  # fmt: skip
def test_every_rank_gets_the_bits_that_the_disk_has(
    run: Run, model: str, source: dict[str, Any], target: dict[str, Any], job: dict[str, Any]
) -> None:
    answers = run("once", model, source, target, **job)
    assert equal(answers)
    assert all(a["tensors"] for rank, a in enumerate(answers) if rank in job.get("target_ranks", [rank]))


@pytest.mark.parametrize("transport", ["p2p", "all_to_all"])
def test_a_plan_serves_many_steps(run: Run, transport: str) -> None:
    options = {"bucket_nbytes": 64 << 10, "transport": transport}
    assert equal(run("steps", "llama", T2P2, {"pp": 2, "vpp": 2}, world=4, options=options))


def test_small_buckets_cut_messages(run: Run) -> None:
    """Rounds follow one another, and the result is the same."""
    big = {"bucket_nbytes": 64 << 10, "transport": "all_to_all"}
    answers = run("steps", "llama", T2, P2, mixed=True, options=big)
    assert equal(answers)


def test_released_sources_bound_the_peak(run: Run) -> None:
    bucket = 64 << 10
    for answer in run("released", "llama", T2, P2, options={"bucket_nbytes": bucket}):
        assert answer["different"] == []
        assert answer["peak"] <= max(answer["sizes"]) + 2 * bucket + answer["largest"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("missing", "rank 1: 1 source tensors are missing: embedding.word_embeddings.weight"),
        (
            "shape",
            "rank 1: embedding.word_embeddings.weight has shape [18, 16], the layout asks for [19, 16]",
        ),
        ("dtype", "embedding.word_embeddings.weight on rank 0 is bfloat16"),
        ("extra", "rank 1: 1 source tensors are no part of this rank's layout: decoder.layers.0.mlp.no_such"),
        ("type", "rank 1: embedding.word_embeddings.weight is no tensor but str"),
        ("none", "rank 1: 27 source tensors are missing"),
        ("out", "rank 1: 1 target tensors are missing"),
        ("plan", "ranks 1 reshard by another plan than rank 0"),
        ("world", "rank 0: the plan is for 3 ranks, the process group has 2"),
    ],
)
def test_what_is_wrong_on_one_rank_is_raised_on_all(run: Run, wrong: str, says: str) -> None:
    """Nothing hangs, and the same runner works as soon as everything is right."""
    answers = run("failing", "llama", T2, P2, wrong=wrong, culprit=1)
    for answer in answers:
        assert answer["error"].startswith("MappingError: ")
        assert says in answer["error"]
    assert equal(answers)


def test_arguments_that_one_rank_cannot_plan_are_raised_on_all(run: Run) -> None:
    answers = run("failing_arguments", "llama", T2, P2, culprit=1)
    assert "LayoutError" in answers[1]["error"]
    assert answers[0]["error"].startswith("MappingError: rank 1: the target layout tp3 pp1 takes 3 ranks")


def plan_of(source: Layout, target: Layout, world: int, **sides: Any) -> Any:
    table, config = model_config(None, LLAMA)
    return plan_reshard(table, config, *placements(source, target, world, **sides), world_size=world)


def test_a_plan_is_plain_data() -> None:
    plan = plan_of(Layout(2), Layout(1, 2), 2)
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert plan.digest == plan_of(Layout(2), Layout(1, 2), 2).digest
    assert plan.digest != plan_of(Layout(2), Layout(1, 2), 2, target_ranks=[1, 0]).digest


def test_both_ends_of_a_message_see_the_same() -> None:
    """In every round, what a rank sends is what the others expect of it, in the same order."""
    plan = plan_of(Layout(2, 2), Layout(4), 8, source_ranks=[1, 3, 5, 7], target_ranks=[4, 5, 6, 7])
    sizes = {transfer.name: 2 for transfer in plan.transfers}
    for direct in (True, False):
        parts = [schedule(plan, r, sizes, bucket_nbytes=64 << 10, direct=direct) for r in range(8)]
        assert len({len(part.rounds) for part in parts}) == 1
        for number in range(len(parts[0].rounds)):
            for a in range(8):
                for b in range(8):
                    sent = [m for m in parts[a].rounds[number].sends if m.peer == b]
                    taken = [m for m in parts[b].rounds[number].receives if m.peer == a]
                    assert [(m.nbytes, m.moves) for m in sent] == [(m.nbytes, m.moves) for m in taken]


def test_replicas_share_the_sending() -> None:
    """Four copies of a model feed four ranks: each source sends about as much."""
    plan = plan_of(Layout(), Layout(4), 8, source_ranks=range(4), target_ranks=range(4, 8))
    sizes = {transfer.name: 2 for transfer in plan.transfers}
    sent = [schedule(plan, r, sizes, bucket_nbytes=1 << 20).sent_nbytes for r in range(4)]
    assert max(sent) - min(sent) < 0.05 * sum(sent)


@pytest.mark.parametrize(
    ("source", "target", "sides", "says"),
    [
        (Layout(8), Layout(), {"source_names": "hf"}, "num_query_groups=4"),
        (Layout(2), Layout(3), {}, "takes 3 ranks or a multiple"),
        (Layout(2), Layout(), {"target_ranks": [0, 0]}, "distinct"),
        (Layout(2), Layout(), {"source_ranks": [0, 9]}, "distinct ranks of 8"),
        (Layout(2), Layout(), {"target_padded_vocab_size": 37}, "at least vocab_size=38"),
        (Layout(2), Layout(1, 2, 1, 2), {"target_names": "hf"}, "no virtual pipeline"),
    ],
)
def test_what_cannot_be_planned(source: Layout, target: Layout, sides: dict[str, Any], says: str) -> None:
    with pytest.raises((LayoutError, UsageError)) as error:
        plan_of(source, target, 8, **sides)
    assert says in str(error.value)
