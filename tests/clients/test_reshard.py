"""What a change of layout writes, loaded by megatron-core at just that layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from nemoconv.converters.run.convert import convert
from nemoconv.converters.run.reshard import reshard
from nemoconv.errors import LayoutError
from nemoconv.formats.torch.dist import read_chunk, read_metadata
from nemoconv.resharding.layout_file import parse_notation
from nemoconv.stores.files import SourceDir
from nemoconv.tensors.layout import Layout

from . import models
from .models import Variant, variant
from .worlds import SCRIPT, World

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

HF = Callable[[Variant], Path]
TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    pytest.importorskip("megatron.core", reason="megatron-core is not installed")
    ranks = World(tmp_path_factory.mktemp("world") / "stderr", SCRIPT.with_name("megatron_layout_rank.py"))
    yield ranks
    ranks.close()


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], list[list[list[int]]]]] = {
    "tp2": ({}, {"tensor_parallel_size": 2}, [[[0, 1, 2, 3]]] * 2),
    "uneven": ({}, {"stages": [1, 3]}, [[[0]], [[1, 2, 3]]]),
    "ends counted": (
        {},
        {
            "pipeline_parallel_size": 2,
            "account_for_embedding_in_pipeline_split": True,
            "account_for_loss_in_pipeline_split": True,
        },
        [[[0, 1]], [[2, 3]]],
    ),
    "first": (
        {},
        {"pipeline_parallel_size": 2, "num_layers_in_first_pipeline_stage": 3},
        [[[0, 1, 2]], [[3]]],
    ),
    "virtual": (
        {},
        {"pipeline_parallel_size": 2, "virtual_pipeline_parallel_size": 2},
        [[[0], [2]], [[1], [3]]],
    ),
    "virtual and uneven": (
        {},
        {"pipeline_parallel_size": 2, "stages": "E|tt|t|tL"},
        [[[], [2]], [[0, 1], [3]]],
    ),
    "more ranks than query groups": ({"groups": 1}, {"tensor_parallel_size": 2}, [[[0, 1, 2, 3]]] * 2),
}


@pytest.mark.parametrize("case", CASES)
def test_megatron_core_loads_it_at_its_layout(hf: HF, layouts: World, tmp_path: Path, case: str) -> None:
    import torch
    import yaml

    changes, said, held = CASES[case]
    source = hf(variant("gqa", layers=4, **changes))
    convert(source, tmp_path / "nemo", to="nemo2")
    (tmp_path / "layout.yaml").write_text(yaml.safe_dump(said))
    report = reshard(tmp_path / "nemo", tmp_path / "out", layout=tmp_path / "layout.yaml", verify=True)
    assert any("more than num_query_groups=1" in note for note in report.notes) == bool(changes)
    logits = models.logits(source, "float32")
    torch.save({"ids": models.ids(logits.shape[-1]), "logits": logits}, tmp_path / "reference.pt")
    tp = said.get("tensor_parallel_size", 1)
    answers = layouts.run(
        "compare_layout",
        directory=str(tmp_path / "out"),
        reference=str(tmp_path / "reference.pt"),
        tp=tp,
        pp=2 // tp,
    )
    assert [answer["layers"] for answer in answers] == held
    assert max(answer["diff"] for answer in answers if "diff" in answer) < TOLERANCE


@pytest.mark.parametrize("optimizer", ["none", "fully_reshardable"])
@pytest.mark.parametrize("to", [(2, 1), (1, 2)], ids=str)
def test_megatron_core_loads_the_optimizer(
    hf: HF, layouts: World, tmp_path: Path, optimizer: str, to: tuple[int, int]
) -> None:
    """As it loads the state that it saved itself at another layout: torch_dist lets it."""
    source = hf(variant("gqa"))
    convert(source, tmp_path / "nemo", to="nemo2")
    metadata = {"distrib_optim_sharding_type": optimizer}
    layouts.run(
        "resave",
        directory=str(tmp_path / "nemo"),
        out=str(tmp_path / "saved"),
        tp=1,
        pp=1,
        metadata=metadata,
        prefix="module.",
        optimizer=optimizer,
    )
    tp, pp = to
    report = reshard(
        tmp_path / "saved",
        tmp_path / "out",
        tensor_parallel_size=tp,
        pipeline_parallel_size=pp,
        config=source,
        verify=False,
    )
    assert any(note.startswith("optimizer state goes along") for note in report.notes)
    answers = layouts.run(
        "load_optimizer",
        directory=str(tmp_path / "nemo"),
        first=str(tmp_path / "saved"),
        second=str(tmp_path / "out"),
        tp=tp,
        pp=pp,
        optimizer=optimizer,
        metadata=metadata,
    )
    for answer in answers:
        assert answer["same"] == answer["tensors"] > 20
        assert answer["moments"] > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, {"tensor_parallel_size": 2}),
        ({"tied": True}, {"pipeline_parallel_size": 2}),
        ({}, {"pipeline_parallel_size": 2, "virtual_pipeline_parallel_size": 2}),
        ({"tied": True}, {"pipeline_parallel_size": 2, "stages": "E|tt|t|tL"}),
    ],
    ids=["tp2", "tied pp2", "vpp2", "tied, uneven, vpp2"],
)
def test_megatron_core_loads_rank_files(
    hf: HF, layouts: World, tmp_path: Path, changes: dict[str, Any], said: dict[str, Any]
) -> None:
    """Its own state dict of one rank, in Megatron-LM's files, cut for two: each loads its own, strictly."""
    import torch
    import yaml

    source = hf(variant("gqa", layers=4, dtype="float32", **changes))
    convert(source, tmp_path / "nemo", to="nemo2")
    layouts.run("save_rank_files", directory=str(tmp_path / "nemo"), out=str(tmp_path / "lm"), tp=1, pp=1)
    (tmp_path / "layout.yaml").write_text(yaml.safe_dump(said))
    report = reshard(
        tmp_path / "lm", tmp_path / "out", layout=tmp_path / "layout.yaml", config=source, verify=True
    )
    assert report.notes == ["state of single ranks fits no other layout: rng_state left out"]
    reshard(tmp_path / "nemo", tmp_path / "stated", layout=tmp_path / "layout.yaml")
    logits = models.logits(source, "float32")
    torch.save({"ids": models.ids(logits.shape[-1]), "logits": logits}, tmp_path / "reference.pt")
    tp = said.get("tensor_parallel_size", 1)
    answers = layouts.run(
        "compare_rank_files",
        directory=str(tmp_path / "stated"),
        out=str(tmp_path / "out"),
        reference=str(tmp_path / "reference.pt"),
        tp=tp,
        pp=2 // tp,
    )
    for answer in answers:
        assert answer["rest"] == ["args", "checkpoint_version", "iteration"]
        assert answer["sizes"] == [tp, 2 // tp]
        assert answer["others"] == [
            "torch.float32",
            "ModelType.encoder_or_decoder",
            "(0.9, 0.95)",
            "['a', None]",
        ]
    assert max(answer["diff"] for answer in answers if "diff" in answer) < TOLERANCE
    back = tmp_path / "back"
    reshard(tmp_path / "out", back, tensor_parallel_size=1, pipeline_parallel_size=1, config=source)
    first, last = (
        torch.load(f / "mp_rank_00/model_optim_rng.pt", weights_only=False) for f in (tmp_path / "lm", back)
    )
    assert first["model"].keys() == last["model"].keys()
    for key, tensor in first["model"].items():
        assert tensor is last["model"][key] is None or tensor.equal(last["model"][key]), key


def test_megatron_core_deals_layers_the_same(layouts: World) -> None:
    """Over a grid of settings, against get_num_layers_to_build and get_transformer_layer_offset."""
    ends = ("num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage")
    counted = ("account_for_embedding_in_pipeline_split", "account_for_loss_in_pipeline_split")
    ways: list[dict[str, Any]] = [{}, dict.fromkeys(ends, 2), dict.fromkeys(counted, True)]
    ways += [{end: count} for end in ends for count in (2, 4)] + [{name: True} for name in counted]
    cases, ours = [], []
    for said, pp, vpp, count in product(ways, (2, 3, 4), (1, 2), range(4, 17)):
        try:
            dealt = Layout(1, pp, virtual_pipeline_parallel_size=vpp, **said).layers(count)
        except LayoutError:
            continue
        ours.append([[run.start, len(run)] for run in dealt])
        sizes = {"pipeline_model_parallel_size": pp, "num_layers": count}
        sizes["virtual_pipeline_model_parallel_size"] = vpp if vpp > 1 else None
        cases.append({**dict.fromkeys(ends), **dict.fromkeys(counted, False), **said, **sizes})
    assert len(cases) > 100
    assert layouts.run("deal_layers", cases=cases, tp=1, pp=1)[0]["dealt"] == ours


def test_megatron_core_orders_ranks_the_same(layouts: World) -> None:
    """Dense and expert ranks of every stage, against RankGenerator."""
    cases, ours = [], []
    for tp, pp, ep, etp in product((1, 2, 4), (1, 2), (1, 2, 4), (1, 2)):
        layout = Layout(tp, pp, ep, expert_tensor_parallel_size=etp)
        size = layout.stage_size
        cases.append({"tp": tp, "ep": 1, "dp": size // tp, "pp": pp})
        ours.append([[layout.rank(rank, stage) for rank in range(tp)] for stage in range(pp)])
        cases.append({"tp": etp, "ep": ep, "dp": size // (etp * ep), "pp": pp})
        owners = product(range(pp), range(ep))
        ours.append([[layout.rank(rank, stage, owner) for rank in range(etp)] for stage, owner in owners])
    groups = layouts.run("group_ranks", cases=cases, tp=1, pp=1)[0]["groups"]
    for theirs, mine, case in zip(groups, ours, cases, strict=True):
        assert all(group in theirs for group in mine), case


def test_megatron_core_reads_the_notation_the_same(layouts: World) -> None:
    texts = ["Ettt|(tt|)*3,ttL", "E|t*4|t*3|L", "(Et|tt)*1|ttL", "Et*3|(t|)*2tt|L"]
    counts = layouts.run("count_layers", texts=texts, tp=1, pp=1)[0]["counts"]
    assert counts == [parse_notation(text) for text in texts]


def test_the_judge_sees_optimizer_state_in_the_wrong_place(hf: HF, layouts: World, tmp_path: Path) -> None:
    """One element of a moment changed: what the optimizer's test compares is no longer the same."""
    source = hf(variant("gqa"))
    convert(source, tmp_path / "nemo", to="nemo2")
    kind: dict[str, Any] = {"optimizer": "fully_reshardable"}
    kind["metadata"] = {"distrib_optim_sharding_type": "fully_reshardable"}
    nemo, saved, out = (str(tmp_path / name) for name in ("nemo", "saved", "out"))
    layouts.run("resave", directory=nemo, out=saved, tp=1, pp=1, prefix="module.", **kind)
    reshard(saved, out, pipeline_parallel_size=2, config=source)
    metadata = read_metadata(SourceDir(out))
    key = "optimizer.state.exp_avg.module.decoder.layers.mlp.linear_fc2.weight"
    directory = SourceDir(out)
    extent = read_chunk(directory, metadata.tensors[key], metadata.tensors[key].chunks[0])
    with open(extent.file.path, "r+b") as file:
        file.seek(extent.offset)
        file.write(b"\x00\x00\x80\x3f")
    answers = layouts.run("load_optimizer", directory=nemo, first=saved, second=out, tp=1, pp=2, **kind)
    assert sum(answer["tensors"] - answer["same"] for answer in answers) == 1
