"""What we write, loaded by megatron-core and torch; what megatron-core writes, read by us."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemoconv.converters.look.verify import verify
from nemoconv.converters.registry import open_checkpoint
from nemoconv.converters.run.compare import Comparison
from nemoconv.converters.run.convert import convert
from nemoconv.errors import CorruptCheckpoint
from nemoconv.stores.files import SourceFile

from . import models
from .models import VARIANTS, Variant, variant
from .worlds import JobFailed, World

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

HF = Callable[[Variant], Path]
TOLERANCE = 2e-4  # float32; measured: 1e-5
slow = pytest.mark.slow
BY_LAYER = {"non_homogeneous_layers": True}
SHARDINGS = ("dp_reshardable", "fully_reshardable")  # megatron-core 0.14 wrote others: see test_fixtures
FOUR_RANKS = ("gqa", "tied", "both-biases", "llama3-other")
CASES = [
    pytest.param(v, (tp, pp), id=f"{v}-tp{tp}pp{pp}", marks=[slow] if tp * pp > 2 else [])
    for v in VARIANTS
    for tp, pp in [(1, 1), (2, 1), (1, 2), (2, 2), (3, 1)]
    if v.fits(tp, pp) and (tp * pp != 4 or v.name in FOUR_RANKS)
]


@pytest.fixture
def judge(world: World, tmp_path: Path) -> Callable[[Path, Path, int, int], float]:
    """judge(nemo, hf, tp, pp): the distance of megatron-core's logits from those of transformers."""

    def distance(nemo: Path, hf: Path, tp: int, pp: int) -> float:
        import torch

        logits = models.logits(hf, "float32")
        assert 3 < logits.abs().max() < 30
        reference = tmp_path / "reference.pt"
        torch.save({"ids": models.ids(logits.shape[-1]), "logits": logits}, reference)
        answers = world.run("compare", directory=str(nemo), reference=str(reference), tp=tp, pp=pp)
        last = [answer for answer in answers if "diff" in answer]
        assert len(last) == tp
        assert all(answer["parameters"] for answer in answers)
        diff: float = max(answer["diff"] for answer in last)
        if diff < TOLERANCE:
            assert all(answer["argmax_equal"] for answer in last)
        return diff

    return distance


Judge = Callable[[Path, Path, int, int], float]


@pytest.mark.parametrize(("v", "layout"), CASES)
def test_megatron_core_computes_what_transformers_computes(
    hf: HF, judge: Judge, tmp_path: Path, v: Variant, layout: tuple[int, int]
) -> None:
    nemo = tmp_path / "nemo"
    tp, pp = layout
    convert(hf(v), nemo, to="nemo2", tensor_parallel_size=tp, pipeline_parallel_size=pp)
    assert judge(nemo, hf(v), tp, pp) < TOLERANCE


def test_any_layout_is_loaded_at_any_other(hf: HF, judge: Judge, tmp_path: Path) -> None:
    for tp, pp in [(1, 1), (2, 2)]:
        nemo = tmp_path / f"nemo{tp}"
        convert(hf(variant("gqa")), nemo, to="nemo2", tensor_parallel_size=tp, pipeline_parallel_size=pp)
        for at in [(1, 1), (2, 1), (1, 2)]:
            assert judge(nemo, hf(variant("gqa")), *at) < TOLERANCE


def test_a_padded_vocabulary_is_loaded(hf: HF, judge: Judge, tmp_path: Path) -> None:
    source = hf(variant("gqa", vocab=321))
    convert(source, tmp_path / "nemo", to="nemo2", tensor_parallel_size=2)
    assert judge(tmp_path / "nemo", source, 2, 1) < TOLERANCE


@pytest.mark.parametrize("name", ["llama3", "llama3-other", "linear"])
def test_the_judge_sees_a_lost_rotary_scaling(hf: HF, judge: Judge, tmp_path: Path, name: str) -> None:
    convert(hf(variant("gqa")), tmp_path / "nemo", to="nemo2")  # the same weights, nothing scaled
    assert judge(tmp_path / "nemo", hf(variant(name)), 1, 1) > 10 * TOLERANCE


def swap(nemo: Path, first: tuple[str, int], second: tuple[str, int], nbytes: int) -> None:
    """Exchange bytes of two tensors, each given by its name and the byte where its part begins."""
    places = []
    with open_checkpoint(nemo) as opened:
        for name, at in (first, second):
            extent = opened.stored(name).extents[0]
            places.append((Path(extent.file.path), extent.offset + at))
    held = []
    for file, offset in places:
        held.append(file.read_bytes()[offset : offset + nbytes])
    assert held[0] != held[1]
    for (file, offset), data in zip(places, reversed(held), strict=True):
        with open(file, "r+b") as opened_file:
            opened_file.seek(offset)
            opened_file.write(data)


@pytest.mark.parametrize("what", ["gate and up", "key and value", "query heads", "layers", "norms"])
def test_the_judge_sees_weights_in_the_wrong_place(
    hf: HF, judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    v = variant("gqa", dtype="float32")
    nemo = tmp_path / "nemo"
    convert(hf(v), nemo, to="nemo2")
    head = v.head_dim * v.hidden * 4
    qkv = "decoder.layers.0.self_attention.linear_qkv.weight"
    if what == "gate and up":
        with open_checkpoint(nemo) as opened:
            gate, up = opened.stored("decoder.layers.0.mlp.linear_fc1.weight").extents
        fc1 = "decoder.layers.0.mlp.linear_fc1.weight"
        swap(nemo, (fc1, 0), (fc1, up.offset - gate.offset), v.ffn * v.hidden * 4)
    elif what == "key and value":
        swap(nemo, (qkv, 2 * head), (qkv, 3 * head), head)
    elif what == "query heads":  # of different groups, as a concatenation without groups would have it
        swap(nemo, (qkv, head), (qkv, 4 * head), head)
    elif what == "layers":
        fc2 = "decoder.layers.{}.mlp.linear_fc2.weight"
        swap(nemo, (fc2.format(0), 0), (fc2.format(1), 0), v.ffn * v.hidden * 4)
    else:
        first, second = "self_attention.linear_qkv", "mlp.linear_fc1"
        name = "decoder.layers.1.{}.layer_norm_weight"
        swap(nemo, (name.format(first), 0), (name.format(second), 0), v.hidden * 4)
    assert judge(nemo, hf(v), 1, 1) > 100 * TOLERANCE
    with pytest.raises(CorruptCheckpoint):
        verify(nemo)
    with pytest.raises(CorruptCheckpoint, match="has checksum"):
        verify(nemo, hf(v))
    monkeypatch.setattr(SourceFile, "expect", lambda *_: None)  # the swap hidden
    found = verify(nemo, hf(v))
    assert isinstance(found, Comparison)
    assert not found.equal


def test_the_judge_sees_a_missing_tensor(hf: HF, judge: Judge, tmp_path: Path) -> None:
    nemo = tmp_path / "nemo"
    convert(hf(variant("gqa")), nemo, to="nemo2")
    metadata = nemo / "weights" / ".metadata"
    edited = metadata.read_bytes().replace(
        b"decoder.final_layernorm.weight", b"decoder.final_layernorm.wight!"
    )
    metadata.write_bytes(edited)
    with pytest.raises(JobFailed, match="not in the checkpoint"):
        judge(nemo, hf(variant("gqa")), 1, 1)


@pytest.mark.parametrize("layout", [(1, 1), (2, 1), (1, 2), (2, 2)], ids=str)
@pytest.mark.parametrize("name", ["gqa", "both-biases", "tied", "fp16", "shards-fp32-mha"])
def test_torch_loads_every_bit(tmp_path: Path, name: str, layout: tuple[int, int]) -> None:
    import torch
    import torch.distributed.checkpoint as dcp

    v = variant(name)
    source = models.build(tmp_path / "hf", v)
    models.fill_with_random_bits(source)
    nemo = tmp_path / "nemo"
    convert(source, nemo, to="nemo2", tensor_parallel_size=layout[0], pipeline_parallel_size=layout[1])
    expected = models.as_megatron_names(source, v)
    stored = dcp.FileSystemReader(nemo / "weights").read_metadata().state_dict_metadata
    assert {key for key in stored if "_extra_state" not in key} == expected.keys()
    loaded = {key: torch.zeros_like(tensor) for key, tensor in expected.items()}
    dcp.load(loaded, checkpoint_id=nemo / "weights", no_dist=True)
    for key, tensor in expected.items():
        assert stored[key].size == tensor.shape
        assert stored[key].properties.dtype == tensor.dtype
        assert loaded[key].view(torch.uint8).equal(tensor.view(torch.uint8)), key


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 2)])
def test_torch_and_megatron_load_several_files_of_a_rank(
    judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tp: int, pp: int
) -> None:
    """As a rank with more than half a gigabyte has them."""
    import torch
    import torch.distributed.checkpoint as dcp

    monkeypatch.setattr("nemoconv.converters.nemo2.writer.FILE_NBYTES", 20_000)
    v = variant("gqa")
    source, nemo = models.build(tmp_path / "hf", v), tmp_path / "nemo"
    convert(source, nemo, to="nemo2", tensor_parallel_size=tp, pipeline_parallel_size=pp)
    assert len(list((nemo / "weights").glob("__0_*.distcp"))) > 2
    expected = models.as_megatron_names(source, v)
    loaded = {key: torch.zeros_like(tensor) for key, tensor in expected.items()}
    dcp.load(loaded, checkpoint_id=nemo / "weights", no_dist=True)
    for key, tensor in expected.items():
        assert loaded[key].view(torch.uint8).equal(tensor.view(torch.uint8)), key
    assert judge(nemo, source, 1, 1) < TOLERANCE


def test_torch_loads_every_object_with_its_safe_loader(hf: HF, tmp_path: Path) -> None:
    import io

    import torch
    import torch.distributed.checkpoint as dcp

    weights = tmp_path / "nemo" / "weights"
    convert(hf(variant("gqa")), tmp_path / "nemo", to="nemo2")
    assert torch.load(weights / "common.pt", weights_only=True)["global_step"] == 0
    places = dcp.FileSystemReader(weights).read_metadata().storage_data
    objects = {index.fqn: info for index, info in places.items() if "_extra_state" in index.fqn}
    assert len(objects) == 2 * 5 + 1
    for info in objects.values():
        data = (weights / info.relative_path).read_bytes()[info.offset : info.offset + info.length]
        assert torch.load(io.BytesIO(data), weights_only=True) == [None]


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize(
    ("name", "prefix", "metadata", "optimizer"),
    [
        *(pytest.param(name, "module.", {}, "", id=name) for name in ("gqa", "both-biases", "tied", "fp16")),
        pytest.param("gqa", "", {}, "", id="without prefix"),
        pytest.param("both-biases", "module.", BY_LAYER, "", id="by layer"),
        pytest.param("gqa", "module.", {}, "none", id="with optimizer"),
        *(pytest.param("gqa", "module.", {}, kind, id=f"optimizer {kind}") for kind in SHARDINGS),
    ],
)
def test_what_megatron_core_saves_is_read(
    hf: HF,
    world: World,
    tmp_path: Path,
    name: str,
    prefix: str,
    metadata: dict[str, Any],
    optimizer: str,
    tp: int,
    pp: int,
) -> None:
    source = hf(variant(name))
    convert(source, tmp_path / "nemo", to="nemo2")
    saved = tmp_path / "saved"
    world.run(
        "resave",
        directory=str(tmp_path / "nemo"),
        out=str(saved),
        tp=tp,
        pp=pp,
        metadata=metadata,
        prefix=prefix,
        optimizer=optimizer,
    )
    assert (saved / ".metadata").exists()
    assert len(list(saved.glob("__*.distcp"))) >= tp * pp
    report = convert(saved, tmp_path / "back", to="hf", config=source)
    models.assert_same_tensors(source, tmp_path / "back")
    assert any("optimizer" in note for note in report.notes) == bool(optimizer)
    found = verify(saved, source, config=source)
    assert isinstance(found, Comparison)
    assert found.equal, found.describe()
