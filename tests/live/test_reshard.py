"""Live resharding between processes: every rank's bits are those of the checkpoint cut on disk."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from nemoconv.errors import LayoutError, UnsupportedError, UsageError
from nemoconv.live import Layout, placements, plan_reshard
from nemoconv.live.plan import model_config
from nemoconv.live.schedule import schedule

from .live_world import (
    HF_SOURCE,
    HF_TARGET,
    LLAMA,
    MOE,
    P2,
    P4,
    T1,
    T2,
    T2P2,
    T4,
    Ranks,
    Run,
    equal,
    job_of,
    prepare,
)

MODELS = {
    "llama": LLAMA,
    "tied": {**LLAMA, "tie_word_embeddings": True},
    "moe": MOE,
    "wide": {**LLAMA, "hidden_size": 128, "head_dim": 16, "intermediate_size": 256},
}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    pytest.importorskip("torch")
    world = Ranks(tmp_path_factory.mktemp("ranks") / "log")
    yield world
    world.close()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("live")
    made = {name: prepare(folder / name, config, 0) for name, config in MODELS.items()}
    return made | {"llama again": prepare(folder / "again", LLAMA, 1000)}


@pytest.fixture
def run(ranks: Ranks, data: dict[str, str]) -> Run:
    def go(do: str, model: str, source: dict[str, Any], target: dict[str, Any], **given: Any) -> Any:
        steps = [data["llama again"], data["llama"]]
        return ranks.run(**job_of(do, MODELS[model], data[model], source, target, steps=steps, **given))

    return go


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


@pytest.mark.parametrize(("source", "target"), [(T2, P2), (P2, T2), (T4, {"pp": 2, "vpp": 2})], ids=str)
def test_released_sources_bound_the_peak(run: Run, source: dict[str, Any], target: dict[str, Any]) -> None:
    bucket = 64 << 10
    for answer in run("released", "wide", source, target, options={"bucket_nbytes": bucket}):
        assert answer["different"] == []
        assert answer["peak"] <= max(answer["sizes"]) + bucket + max(bucket, answer["largest"])
        assert answer["largest"] > bucket


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


def test_rows_that_the_other_side_would_not_divide_by_their_lengths() -> None:
    baichuan2 = {
        "model_type": "baichuan",
        "vocab_size": 125_696,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "model_max_length": 64,
        "max_position_embeddings": 64,
    }
    table, config = model_config(None, baichuan2)
    with pytest.raises(UnsupportedError, match="lm_head.weight: its rows are divided by their lengths"):
        plan_reshard(table, config, *placements(Layout(), Layout(2), 2, source_names="hf"), world_size=2)
    same = placements(Layout(2), Layout(1, 2), 2)
    assert plan_reshard(table, config, *same, world_size=2).transfers


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
