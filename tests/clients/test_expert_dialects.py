"""Experts as megatron-core's own modules keep them: its sequential ones and its first grouped GEMM, stacked
and by ``singleton_local_shards``, in torch_dist and in the state dicts of ranks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemoconv.converters.run.convert import convert
from nemoconv.converters.run.reshard import reshard

from . import models
from .test_moe_architectures import TOLERANCE, build
from .worlds import World

pytest.importorskip("transformers")
SINGLETON = {"singleton_local_shards": True}
KINDS = pytest.mark.parametrize("grouped", [False, True], ids=["sequential", "grouped"])
CASES = ("mixtral", "deepseek_v3")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("experts")
    return {case: build(root / case, case) for case in CASES}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    pytest.importorskip("megatron.core", reason="megatron-core is not installed")
    script = Path(__file__).with_name("megatron_moe_rank.py")
    ranks = World(tmp_path_factory.mktemp("world") / "stderr", script)
    yield ranks
    ranks.close()


def distance(world: World, nemo: Path, hf: Path, scratch: Path, **job: Any) -> float:
    """How far megatron-core's logits are from those of transformers."""
    import torch

    logits = models.logits(hf, "float32")
    torch.save({"ids": models.ids(logits.shape[-1]), "logits": logits}, scratch / "reference.pt")
    paths = {"directory": str(nemo), "reference": str(scratch / "reference.pt")}
    answers = world.run("compare_moe", **paths, **{"tp": 1, "pp": 1, "ep": 1, **job})
    return max(answer["diff"] for answer in answers if "diff" in answer)


@KINDS
@pytest.mark.parametrize("experts", ["stacked", "singleton"])
@pytest.mark.parametrize("case", CASES)
def test_both_kinds_of_modules_load_what_is_written(
    sources: dict[str, Path], world: World, tmp_path: Path, case: str, experts: str, grouped: bool
) -> None:
    convert(sources[case], tmp_path / "nemo", to="nemo2", experts=experts, verify=True)
    assert distance(world, tmp_path / "nemo", sources[case], tmp_path, grouped=grouped) < TOLERANCE


@pytest.mark.parametrize("layout", [{"tp": 2}, {"ep": 2}], ids=str)
def test_singletons_of_several_ranks(
    sources: dict[str, Path], world: World, tmp_path: Path, layout: dict[str, int]
) -> None:
    sizes = {"tensor_parallel_size": layout.get("tp", 1), "expert_parallel_size": layout.get("ep", 1)}
    convert(sources["mixtral"], tmp_path / "nemo", to="nemo2", experts="singleton", **sizes)
    assert distance(world, tmp_path / "nemo", sources["mixtral"], tmp_path, **layout) < TOLERANCE


@KINDS
@pytest.mark.parametrize("metadata", [{}, SINGLETON], ids=["stacked", "singleton"])
@pytest.mark.parametrize("layout", [(2, 1), (1, 2)], ids=str)
def test_what_they_save_is_read(
    sources: dict[str, Path],
    world: World,
    tmp_path: Path,
    metadata: dict[str, Any],
    grouped: bool,
    layout: tuple[int, int],
) -> None:
    tp, ep = layout
    convert(sources["mixtral"], tmp_path / "nemo", to="nemo2")
    saved, job = tmp_path / "saved", {"tp": tp, "pp": 1, "ep": ep, "grouped": grouped}
    where = {"directory": str(tmp_path / "nemo"), "out": str(saved / "weights")}
    keys = world.run("save_moe", **where, **job, metadata=metadata)[0]["keys"]
    one = "module.decoder.layers.0.mlp.experts.experts.3.linear_fc1.weight_w"
    assert ("module.decoder.layers.mlp.experts.experts.linear_fc1.weight" in keys) is not bool(metadata)
    assert (one in keys) is bool(metadata)
    shutil.copytree(tmp_path / "nemo/context", saved / "context")
    convert(saved, tmp_path / "back", to="hf", verify=True)
    models.assert_same_tensors(sources["mixtral"], tmp_path / "back")


def test_singletons_in_another_layout(sources: dict[str, Path], world: World, tmp_path: Path) -> None:
    """What megatron-core saved, cut anew by us, is what it loads."""
    convert(sources["mixtral"], tmp_path / "nemo", to="nemo2")
    saved = tmp_path / "saved"
    where = {"directory": str(tmp_path / "nemo"), "out": str(saved / "weights")}
    world.run("save_moe", **where, tp=2, pp=1, ep=1, grouped=False, metadata=SINGLETON)
    shutil.copytree(tmp_path / "nemo/context", saved / "context")
    reshard(saved, tmp_path / "cut", tensor_parallel_size=1, expert_parallel_size=2)
    assert distance(world, tmp_path / "cut", sources["mixtral"], tmp_path, ep=2) < TOLERANCE


@KINDS
@pytest.mark.parametrize(("case", "tp"), [("mixtral", 1), ("mixtral", 2), ("deepseek_v3", 1)])
def test_state_dicts_of_ranks(
    sources: dict[str, Path], world: World, tmp_path: Path, case: str, tp: int, grouped: bool
) -> None:
    convert(sources[case], tmp_path / "nemo", to="nemo2")
    job = {"tp": tp, "pp": 1, "ep": 1, "grouped": grouped}
    where = {"directory": str(tmp_path / "nemo"), "out": str(tmp_path / "ranks")}
    keys = world.run("save_moe", **where, **job)[0]["keys"]
    assert any(key.endswith("experts.weight1") for key in keys) is grouped
    convert(tmp_path / "ranks", tmp_path / "back", to="hf", config=sources[case], verify=True)
    models.assert_same_tensors(sources[case], tmp_path / "back")
