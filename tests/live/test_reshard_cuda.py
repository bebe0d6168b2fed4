"""Live resharding between two GPUs, by every transport: the bits of the checkpoint cut on disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from .live_world import HF_SOURCE, HF_TARGET, LLAMA, MOE, P2, T1, T2, Ranks, equal, job_of, prepare

pytestmark = pytest.mark.cuda(devices=2)

#: wide enough that half a row of any matrix is 64 bytes, the least that GPUs read from one another
LARGER = {"hidden_size": 128, "head_dim": 16}
DENSE = {**LLAMA, **LARGER, "intermediate_size": 256}
MODELS = {
    "dense": DENSE,
    "tied": {**DENSE, "tie_word_embeddings": True},
    "moe": {**MOE, **LARGER, "moe_intermediate_size": 128},
}
VPP2, EP2 = {"pp": 2, "vpp": 2}, {"ep": 2}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    world = Ranks(tmp_path_factory.mktemp("ranks") / "log")
    yield world
    world.close()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("live")
    return {name: prepare(folder / name, config, 0) for name, config in MODELS.items()}


@pytest.mark.parametrize(
    ("model", "source", "target", "said"),
    [
        ("dense", T2, P2, {}),
        ("dense", P2, T2, {"mixed": True}),
        ("dense", T2, VPP2, {}),
        ("dense", VPP2, T2, {"mixed": True}),
        ("tied", T2, VPP2, {}),
        ("dense", T1, T1, {"world": 2, "source_ranks": [0], "target_ranks": [1]}),
        ("moe", EP2, T2, {}),
        ("moe", T2, EP2, {"mixed": True}),
        ("moe", EP2, VPP2, {}),
        ("dense", T2, T1, {"world": 2, **HF_TARGET}),  # whole tensors with Hugging Face names on both
        ("dense", T1, T2, {"world": 2, **HF_SOURCE}),
        ("dense", VPP2, T2, {**HF_TARGET}),  # cut as inference engines cut them
        ("dense", T2, VPP2, {**HF_SOURCE}),
        ("moe", EP2, T1, {"world": 2, **HF_TARGET}),
        ("moe", T2, EP2, {**HF_TARGET, "mixed": True}),
        ("moe", EP2, T2, {**HF_SOURCE}),
    ],
    ids=lambda value: "-".join(f"{k}{v}" for k, v in value.items()) if isinstance(value, dict) else value,
)
def test_every_transport_delivers_the_bits_that_the_disk_has(
    ranks: Ranks,
    data: dict[str, str],
    model: str,
    source: dict[str, Any],
    target: dict[str, Any],
    said: dict[str, Any],
) -> None:
    job = job_of("transports", MODELS[model], data[model], source, target, gpus=True, **said)
    answers = ranks.run(**job, transports=["p2p", "all_to_all", "peer"])
    assert equal(answers)
    assert all(answers[rank]["tensors"] for rank in job["target_ranks"])


def test_released_sources_bound_the_peak(ranks: Ranks, data: dict[str, str]) -> None:
    bucket = 64 << 10
    for answer in ranks.run(
        **job_of("released", DENSE, data["dense"], T2, P2, gpus=True, options={"bucket_nbytes": bucket})
    ):
        assert answer["different"] == []
        assert answer["peak"] <= max(answer["sizes"]) + bucket + max(bucket, answer["largest"])
        assert answer["largest"] > bucket


@pytest.mark.parametrize("wrong", ["missing", "dtype", "out", "plan"])
def test_what_is_wrong_on_one_gpu_is_raised_on_both(ranks: Ranks, data: dict[str, str], wrong: str) -> None:
    job = job_of("failing", DENSE, data["dense"], T2, P2, gpus=True, wrong=wrong, culprit=1)
    answers = ranks.run(**job)
    assert all(answer["error"].startswith("MappingError: ") for answer in answers)
    assert equal(answers)


def test_memory_that_cannot_be_shared(ranks: Ranks, data: dict[str, str]) -> None:
    """torch's expandable segments: an error on both, which says what to do, and does it."""
    answers = ranks.run(**job_of("unsharable", DENSE, data["dense"], T2, P2, gpus=True, culprit=1))
    for answer in answers:
        assert answer["error"].startswith("UnsupportedError: rank 1: its memory cannot be shared: CUDA_ERROR")
        assert 'use transport="p2p"' in answer["error"]
    assert equal(answers)
