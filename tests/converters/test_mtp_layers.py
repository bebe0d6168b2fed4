"""Multi-token prediction layers: what the tensors tell, copies of shared ones, and leaving them out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemoconv.converters.look.verify import verify
from nemoconv.converters.run.convert import convert
from nemoconv.converters.run.reshard import reshard
from nemoconv.converters.torch_dist import names as nemo2_names
from nemoconv.errors import MappingError
from nemoconv.mappings import samples
from nemoconv.testing import data_of

from .hf.test_quantization import quantize, read, write

CONFIG: dict[str, Any] = {
    "architectures": ["Glm4MoeForCausalLM"],
    "model_type": "glm4_moe",
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "moe_intermediate_size": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 2,
    "vocab_size": 66,
}
IGNORED = ["num_nextn_predict_layers"]


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    samples.build(tmp_path / "hf", CONFIG)
    return tmp_path / "hf"


def without_mtp(folder: Path) -> dict[str, bytes]:
    mtp = ("model.layers.2.", "model.layers.3.")
    return {name: data for name, data in data_of(folder).items() if not name.startswith(mtp)}


def test_there_and_back_in_any_layout(hf: Path, tmp_path: Path) -> None:
    convert(hf, tmp_path / "nemo", to="nemo2", tensor_parallel_size=2, verify=True)
    reshard(tmp_path / "nemo", tmp_path / "cut", pipeline_parallel_size=2, expert_parallel_size=2)
    for source in ("nemo", "cut"):
        convert(tmp_path / source, tmp_path / f"{source}-back", to="hf", verify=True)
    assert data_of(tmp_path / "nemo-back") == data_of(hf)
    assert data_of(tmp_path / "cut-back").keys() >= data_of(hf).keys()


def test_a_file_without_copies_comes_back_without_and_others_get_them(hf: Path, tmp_path: Path) -> None:
    """The manifest tells; without it the form of released models is written."""
    convert(hf, tmp_path / "nemo", to="nemo2")
    (tmp_path / "nemo/nemoconv_manifest.json").unlink()
    convert(tmp_path / "nemo", tmp_path / "back", to="hf", verify=True)
    first, second = data_of(hf), data_of(tmp_path / "back")
    added = {
        f"model.layers.{n}.{name}.weight" for n in (2, 3) for name in ("embed_tokens", "shared_head.head")
    }
    assert second.keys() - first.keys() == added
    for name in added:
        original = "model.embed_tokens.weight" if "embed" in name else "lm_head.weight"
        assert second[name] == first[original]


def test_a_tied_model_shares_one_tensor(tmp_path: Path) -> None:
    samples.build(tmp_path / "hf", {**CONFIG, "tie_word_embeddings": True})
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2")
    (tmp_path / "nemo/nemoconv_manifest.json").unlink()
    convert(tmp_path / "nemo", tmp_path / "back", to="hf")
    back = data_of(tmp_path / "back")
    assert back["model.layers.3.shared_head.head.weight"] == back["model.embed_tokens.weight"]
    assert "lm_head.weight" not in back
    convert(tmp_path / "back", tmp_path / "again", to="nemo2", verify=True)


@pytest.mark.parametrize("key", ["num_nextn_predict_layers", "mtp_num_layers"])
def test_they_are_left_out_on_demand_both_ways(hf: Path, tmp_path: Path, key: str) -> None:
    convert(hf, tmp_path / "nemo", to="nemo2")
    report = convert(tmp_path / "nemo", tmp_path / "less", to="hf", allow_ignored=[key], verify=True)
    assert any("of multi-token prediction layers are left out" in note for note in report.notes)
    assert data_of(tmp_path / "less") == without_mtp(hf)
    assert json.loads((tmp_path / "less/config.json").read_text())["num_nextn_predict_layers"] == 0
    if key in IGNORED:
        convert(hf, tmp_path / "small", to="nemo2", allow_ignored=IGNORED, verify=True)
        assert "mtp" not in (tmp_path / "small/context/io.json").read_text()
        convert(tmp_path / "small", tmp_path / "small-back", to="hf")
        assert data_of(tmp_path / "small-back") == without_mtp(hf)


def test_a_config_counts_layers_that_transformers_did_not_save(tmp_path: Path) -> None:
    samples.build(tmp_path / "hf", {**CONFIG, "num_nextn_predict_layers": 0})
    (tmp_path / "hf/config.json").write_text(json.dumps(CONFIG))
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2", verify=True)
    assert "mtp_num_layers" not in (tmp_path / "nemo/context/io.json").read_text()
    convert(tmp_path / "nemo", tmp_path / "back", to="hf", verify=True)
    assert data_of(tmp_path / "back") == data_of(tmp_path / "hf")


def test_one_of_them_missing_is_an_error(hf: Path, tmp_path: Path) -> None:
    (hf / "config.json").write_text(json.dumps({**CONFIG, "num_nextn_predict_layers": 3}))
    with pytest.raises(MappingError, match=r"model\.layers\.4\.e(h_proj|norm)"):
        convert(hf, tmp_path / "nemo", to="nemo2")
    (hf / "config.json").write_text(json.dumps({**CONFIG, "num_nextn_predict_layers": 1}))
    with pytest.raises(MappingError, match=r"no rule.*model\.layers\.3\.") as caught:
        convert(hf, tmp_path / "nemo", to="nemo2")
    assert "--allow-ignored num_nextn_predict_layers" in str(caught.value.hint)
    assert not (tmp_path / "nemo").exists()


def test_a_nemo_directory_that_lacks_them_is_incomplete(hf: Path, tmp_path: Path) -> None:
    """There the config says what a loader will ask for."""
    convert(hf, tmp_path / "nemo", to="nemo2", allow_ignored=IGNORED)
    convert(hf, tmp_path / "whole", to="nemo2")
    (tmp_path / "nemo/nemoconv_manifest.json").unlink()
    for name in ("io.json", "model.yaml"):
        (tmp_path / "nemo/context" / name).write_bytes((tmp_path / "whole/context" / name).read_bytes())
    with pytest.raises(MappingError, match=r"missing: mtp\.layers\.0"):
        convert(tmp_path / "nemo", tmp_path / "back", to="hf")


def test_the_name_that_modules_have_in_newer_megatron_is_read(
    hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = nemo2_names.stored_key

    def key(name: str, *, stacked: bool) -> nemo2_names.StoredKey:
        return known(name.replace(".transformer_layer.", ".mtp_model_layer."), stacked=stacked)

    with monkeypatch.context() as patch:
        patch.setattr(nemo2_names, "stored_key", key)
        convert(hf, tmp_path / "nemo", to="nemo2")
    assert b"mtp_model_layer" in (tmp_path / "nemo/weights/.metadata").read_bytes()
    convert(tmp_path / "nemo", tmp_path / "back", to="hf", verify=True)
    assert data_of(tmp_path / "back") == data_of(hf)


def test_fp8_is_decoded_in_them_too(hf: Path, tmp_path: Path) -> None:
    expected = quantize(hf, "blocks")
    convert(hf, tmp_path / "nemo", to="nemo2", verify=True)
    convert(tmp_path / "nemo", tmp_path / "back", to="hf", verify=True)
    assert {name: raw for name, (_, _, raw) in read(tmp_path / "back").items()} == expected
    report = convert(hf, tmp_path / "small", to="nemo2", allow_ignored=IGNORED, verify=True)
    assert any("of multi-token prediction layers are left out" in note for note in report.notes)


def test_verify_sees_a_copy_that_differs(hf: Path, tmp_path: Path) -> None:
    convert(hf, tmp_path / "nemo", to="nemo2")
    (tmp_path / "nemo/nemoconv_manifest.json").unlink()
    convert(tmp_path / "nemo", tmp_path / "back", to="hf")
    assert verify(tmp_path / "nemo", tmp_path / "back").equal
    (tmp_path / "back/nemoconv_manifest.json").unlink()
    tensors = read(tmp_path / "back")
    name = "model.layers.3.shared_head.head.weight"
    dtype, shape, data = tensors[name]
    write(tmp_path / "back", {**tensors, name: (dtype, shape, data[:-1] + bytes([data[-1] ^ 1]))})
    found = verify(tmp_path / "nemo", tmp_path / "back")
    assert not found.equal
    assert f"{name} is not lm_head.weight: at [65, 15]" in found.describe()
