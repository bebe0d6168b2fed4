"""Directories that NeMo and megatron-core wrote, and layouts of the same items that torch can write."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemoconv.converters.look.verify import verify
from nemoconv.converters.run.compare import Comparison
from nemoconv.converters.run.convert import convert

from . import models
from .models import Variant

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

REAL = Path(__file__).parents[2] / "fixtures" / "nemo2"
HF_LLAMA = REAL / "hf_llama"
HF_TINY = REAL / "hf_tiny"
TINY = Variant("hf_tiny", vocab=512)
METADATA_JSON = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}


@pytest.mark.parametrize("name", ["nemo_tp1pp1", "nemo_tp2pp1", "mcore0161_tp2"])
def test_what_nemo_and_megatron_wrote_becomes_the_model_it_was_made_from(tmp_path: Path, name: str) -> None:
    config = HF_LLAMA if name.startswith("mcore") else None  # a bare save has no context/
    back = tmp_path / "back"
    convert(REAL / name, back, to="hf", config=config, verify=True)
    models.assert_same_tensors(HF_LLAMA, back)
    found = verify(REAL / name, HF_LLAMA, config=config)
    assert isinstance(found, Comparison)
    assert found.equal, found.describe()
    assert found.tensors == 3 + 4 * 6
    assert models.logits(back).equal(models.logits(HF_LLAMA))


@pytest.mark.parametrize("name", ["nemo_tp1pp1", "nemo_tp2pp1"])
def test_config_tokenizer_and_generation_config_of_nemo_come_back(tmp_path: Path, name: str) -> None:
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    back = tmp_path / "back"
    convert(REAL / name, back, to="hf")
    before, after = (AutoConfig.from_pretrained(folder).to_dict() for folder in (HF_LLAMA, back))
    # NeMo's context has no place for these three; generation_config.json has them
    written_elsewhere = {
        "transformers_version",
        "_name_or_path",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    }
    for key in before.keys() - written_elsewhere:
        assert after[key] == before[key], key
    first, second = (AutoTokenizer.from_pretrained(folder) for folder in (HF_LLAMA, back))
    assert [second.encode(text) for text in models.TEXTS] == [first.encode(text) for text in models.TEXTS]
    generation = GenerationConfig.from_pretrained(back)
    assert (generation.bos_token_id, generation.eos_token_id) == (0, 1)


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2), (2, 4)])
def test_what_nemo_wrote_is_rewritten_at_other_layouts(tmp_path: Path, tp: int, pp: int) -> None:
    nemo = tmp_path / "nemo"
    convert(REAL / "nemo_tp2pp1", nemo, to="nemo2", tensor_parallel_size=tp, pipeline_parallel_size=pp)
    found = verify(nemo, HF_LLAMA)
    assert isinstance(found, Comparison)
    assert found.equal, found.describe()
    assert len(list((nemo / "weights").glob("*.distcp"))) == tp * pp


def test_a_save_with_a_distributed_optimizer_gives_the_weights_that_torch_loads(tmp_path: Path) -> None:
    import torch
    import torch.distributed.checkpoint as dcp

    pytest.importorskip("megatron.core", reason="its classes are pickled in .metadata")
    back = tmp_path / "back"
    report = convert(REAL / "mcore0140_optim_dp2", back, to="hf", config=HF_TINY)
    assert any("optimizer state" in note for note in report.notes)
    read = models.as_megatron_names(back, TINY)
    loaded = {key: torch.zeros_like(tensor) for key, tensor in read.items()}
    dcp.load(loaded, checkpoint_id=REAL / "mcore0140_optim_dp2", no_dist=True)
    for key, tensor in read.items():
        assert loaded[key].view(torch.int16).equal(tensor.view(torch.int16)), key
    before = models.tensors(HF_TINY)
    assert before.keys() == models.tensors(back).keys()
    assert before != models.tensors(back)  # it took one step of Adam


class Item:
    """One torch.save of a .distcp file and where it belongs."""

    def __init__(self, key: str, start: tuple[int, ...], tensor: Any) -> None:
        self.key, self.start, self.tensor = key, start, tensor


def save(folder: Path, sizes: dict[str, Any], items: Iterator[Item], *, gap: bytes = b"") -> None:
    """Write items as a torch_dist directory, by torch's own classes."""
    import torch
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import (
        BytesStorageMetadata,
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        TensorProperties,
        TensorStorageMetadata,
    )

    folder.mkdir()
    state: dict[str, Any] = {}
    places = {}
    with open(folder / "__0_0.distcp", "wb") as file:
        for item in items:
            file.write(gap)
            data = io.BytesIO()
            torch.save(item.tensor, data)
            info = _StorageInfo("__0_0.distcp", file.tell(), len(data.getvalue()))
            file.write(data.getvalue())
            if not isinstance(item.tensor, torch.Tensor):
                places[MetadataIndex(item.key)] = info
                state[item.key] = BytesStorageMetadata()
                continue
            places[MetadataIndex(item.key, torch.Size(item.start))] = info
            if item.key not in state:
                properties = TensorProperties(dtype=item.tensor.dtype)
                state[item.key] = TensorStorageMetadata(properties, torch.Size(sizes[item.key]), [])
            chunk = ChunkStorageMetadata(torch.Size(item.start), item.tensor.shape)
            state[item.key].chunks.append(chunk)
        file.write(gap)
    (folder / ".metadata").write_bytes(pickle.dumps(Metadata(state, None, places)))
    torch.save({}, folder / "common.pt")
    (folder / "metadata.json").write_text(json.dumps(METADATA_JSON))


def by_layer(tensors: dict[str, Any]) -> Iterator[Item]:
    """One item for each layer, as NeMo cuts them at TP 1."""
    for key, tensor in tensors.items():
        if ".layers." not in key:
            yield Item(key, (0,) * tensor.ndim, tensor)
            continue
        for layer in range(len(tensor)):
            yield Item(key, (layer,) + (0,) * (tensor.ndim - 1), tensor[layer : layer + 1].clone())


def transposed(tensors: dict[str, Any]) -> Iterator[Item]:
    """The last two axes lie in the other order in memory, as of a tensor saved by way of ``.t()``."""
    for item in by_layer(tensors):
        t = item.tensor
        yield Item(item.key, item.start, t.mT.contiguous().mT if t.ndim > 1 else t)


def inside_a_larger_storage(tensors: dict[str, Any]) -> Iterator[Item]:
    """Views that were saved without cloning, so that the whole base is in the item."""
    import torch

    for item in by_layer(tensors):
        t = item.tensor
        base = torch.full([n + 3 for n in t.shape], 7.0, dtype=t.dtype)
        view = base[tuple(slice(1, 1 + n) for n in t.shape)]
        view.copy_(t)
        yield Item(item.key, item.start, view)


def whole(tensors: dict[str, Any]) -> Iterator[Item]:
    """One chunk with all layers."""
    for key, tensor in tensors.items():
        yield Item(key, (0,) * tensor.ndim, tensor)


def crooked(tensors: dict[str, Any]) -> Iterator[Item]:
    """Cuts that respect no head, no layer and no gate, in no order."""
    pieces = []
    for key, tensor in tensors.items():
        boxes: list[tuple[slice, ...]] = [()]
        for n in tensor.shape:
            step = max(1, n * 5 // 8 - 1)
            boxes = [(*box, slice(at, min(n, at + step))) for box in boxes for at in range(0, n, step)]
        pieces += [Item(key, tuple(s.start for s in box), tensor[box].clone()) for box in boxes]
    yield from reversed(pieces)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A Hugging Face directory with random bits, and the same by Megatron's names."""
    source = models.build(tmp_path_factory.mktemp("weights") / "hf", TINY)
    models.fill_with_random_bits(source)
    return source, models.as_megatron_names(source, TINY)


def check(source: Path, directory: Path, out: Path) -> None:
    convert(directory, out, to="hf", config=source, verify=True)
    models.assert_same_tensors(source, out)
    convert(directory, out.with_suffix(".nemo"), to="nemo2", config=source, tensor_parallel_size=2)
    found = verify(out.with_suffix(".nemo"), source)
    assert isinstance(found, Comparison)
    assert found.equal, found.describe()


@pytest.mark.parametrize("cut", [by_layer, transposed, inside_a_larger_storage, whole, crooked])
@pytest.mark.parametrize("gap", [b"", b"PK\x03\x04 not a zip \x00" * 40], ids=["dense", "holes"])
def test_items_of_any_shape_and_place_are_read(
    weights: tuple[Path, dict[str, Any]], tmp_path: Path, cut: Any, gap: bytes
) -> None:
    source, tensors = weights
    sizes = {key: tensor.shape for key, tensor in tensors.items()}
    save(tmp_path / "weights", sizes, cut(tensors), gap=gap)
    check(source, tmp_path / "weights", tmp_path / "out")


def renamed(tensors: dict[str, Any], *pairs: tuple[str, str]) -> dict[str, Any]:
    for old, new in pairs:
        tensors = {key.replace(old, new): tensor for key, tensor in tensors.items()}
    return tensors


NORMS = (
    ("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight"),
    ("mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight"),
)


@pytest.mark.parametrize(
    "pairs",
    [
        pytest.param([("module.", "")], id="no prefix"),
        pytest.param(NORMS, id="separate norms"),
        pytest.param([("module.", ""), *NORMS], id="no prefix, separate norms"),
    ],
)
def test_other_names_are_read(weights: tuple[Path, dict[str, Any]], tmp_path: Path, pairs: Any) -> None:
    source, tensors = weights
    tensors = renamed(tensors, *pairs)
    save(tmp_path / "weights", {key: t.shape for key, t in tensors.items()}, by_layer(tensors))
    check(source, tmp_path / "weights", tmp_path / "out")


def test_layers_one_by_one_are_read(weights: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    source, tensors = weights
    apart = {}
    for key, tensor in tensors.items():
        for layer in range(TINY.layers if ".layers." in key else 0):
            apart[key.replace("layers.", f"layers.{layer}.")] = tensor[layer].clone()
        if ".layers." not in key:
            apart[key] = tensor
    save(tmp_path / "weights", {key: t.shape for key, t in apart.items()}, whole(apart))
    check(source, tmp_path / "weights", tmp_path / "out")


def test_without_common_pt(weights: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    source, tensors = weights
    save(tmp_path / "weights", {key: t.shape for key, t in tensors.items()}, by_layer(tensors))
    (tmp_path / "weights" / "common.pt").unlink()
    check(source, tmp_path / "weights", tmp_path / "out")


def test_the_common_state_of_newer_megatron_core(
    weights: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """From 0.19 on there is no common.pt, but an object among the items."""
    source, tensors = weights

    def items() -> Iterator[Item]:
        yield Item("common_state/shard_0_1", (), {"iteration": 7, "args": {"lr": 1e-3}})
        yield from by_layer(tensors)

    folder = tmp_path / "weights"
    save(folder, {key: t.shape for key, t in tensors.items()}, items())
    (folder / "common.pt").unlink()
    (folder / "metadata.json").write_text(json.dumps(dict(list(METADATA_JSON.items())[:2])))
    check(source, folder, tmp_path / "out")


def test_what_torch_itself_saves(weights: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    source, tensors = weights
    dcp.save(dict(tensors), checkpoint_id=tmp_path / "weights", no_dist=True)
    (tmp_path / "weights" / "metadata.json").write_text(json.dumps(METADATA_JSON))
    check(source, tmp_path / "weights", tmp_path / "out")
