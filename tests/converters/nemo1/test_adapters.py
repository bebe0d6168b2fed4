"""LoRA adapters in a .nemo, as directories of Hugging Face's PEFT."""

from __future__ import annotations

import copy
import json

import legacy_lora as lora
import legacy_nemo as legacy
import pytest
import tiny

from nemoconv.converters.look.inspect import inspect
from nemoconv.converters.look.verify import verify
from nemoconv.converters.registry import recognize
from nemoconv.converters.run.convert import convert
from nemoconv.errors import (
    CorruptCheckpoint,
    MappingError,
    UnsupportedArchitecture,
    UnsupportedConfig,
    UnsupportedFormat,
)

torch = pytest.importorskip("torch")
CONFIG = {**legacy.CONFIG, "num_key_value_heads": 2}


def pack(path, state, *, tp=1, pp=1, peft=lora.PEFT):
    ranks = lora.ranks(state, tp, pp, CONFIG["num_hidden_layers"])
    return legacy.pack(path, legacy.members(ranks, legacy.yaml_of(CONFIG, peft=peft)))


def load(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (2, 2), (1, 4)])
def test_every_layout_adds_the_same_to_every_matrix(tmp_path, tp, pp):
    state = lora.adapters(CONFIG)
    source = pack(tmp_path / "x.nemo", state, tp=tp, pp=pp)
    report = convert(source, tmp_path / "peft", to="peft", verify=True)
    assert report.target_format == "peft"
    held = load(tmp_path / "peft")
    expected = lora.deltas(state, CONFIG)
    assert held.keys() == {
        f"base_model.model.{name.removesuffix('.weight')}.lora_{half}.weight"
        for name in expected
        for half in "AB"
    }
    for name, delta in expected.items():
        at = f"base_model.model.{name.removesuffix('.weight')}."
        product = held[at + "lora_B.weight"].double() @ held[at + "lora_A.weight"].double()
        assert torch.equal(product * (lora.ALPHA / lora.RANK), delta), name
    said = json.loads((tmp_path / "peft/adapter_config.json").read_text())
    assert (said["peft_type"], said["r"], said["lora_alpha"]) == ("LORA", lora.RANK, lora.ALPHA)
    names = "down gate k o q up v".split()
    assert said["target_modules"] == [f"{name}_proj" for name in names]


def test_bits_of_awkward_numbers(tmp_path):
    state = lora.adapters(CONFIG, torch.bfloat16)
    name = (
        "model.decoder.layers.0.self_attention.adapter_layer.lora_dense_attention_adapter.linear_out.weight"
    )
    state[name] = legacy.tensor(tiny.bits(tuple(state[name].shape), "bfloat16", 3))
    convert(pack(tmp_path / "x.nemo", state, tp=2), tmp_path / "peft", to="peft", verify=True)
    found = load(tmp_path / "peft")["base_model.model.model.layers.0.self_attn.o_proj.lora_B.weight"]
    assert torch.equal(found.view(torch.int16), state[name].view(torch.int16))


def test_one_for_each_matrix(tmp_path):
    """The variant that NeMo calls canonical, on the attention only."""
    generator, state = torch.Generator().manual_seed(1), {}
    sizes = {"q": 32, "k": 16, "v": 16}
    for layer in range(4):
        at = f"model.decoder.layers.{layer}.self_attention.adapter_layer.lora_unfused_kqv_adapter."
        for name, rows in sizes.items():
            state[f"{at}{name}_adapter.linear_in.weight"] = torch.randn(4, 16, generator=generator)
            state[f"{at}{name}_adapter.linear_out.weight"] = torch.randn(rows, 4, generator=generator)
    convert(pack(tmp_path / "x.nemo", state, tp=2, pp=2), tmp_path / "peft", to="peft", verify=True)
    held = load(tmp_path / "peft")
    assert len(held) == len(state)
    for layer in range(4):
        theirs = f"model.decoder.layers.{layer}.self_attention.adapter_layer.lora_unfused_kqv_adapter."
        for name in sizes:
            ours = f"base_model.model.model.layers.{layer}.self_attn.{name}_proj."
            for a, b in (("linear_in", "lora_A"), ("linear_out", "lora_B")):
                assert torch.equal(held[f"{ours}{b}.weight"], state[f"{theirs}{name}_adapter.{a}.weight"])
    said = json.loads((tmp_path / "peft/adapter_config.json").read_text())
    assert said["target_modules"] == ["k_proj", "q_proj", "v_proj"]


def test_adapters_are_no_model(tmp_path):
    source = pack(tmp_path / "x.nemo", lora.adapters(CONFIG))
    with pytest.raises(UnsupportedFormat, match="32 tensors of adapters.*--to peft"):
        convert(source, tmp_path / "hf", to="hf")
    assert "--to peft" in inspect(source)["problem"]


def test_a_model_is_no_set_of_adapters(tmp_path):
    source, _ = legacy.build(tmp_path / "x.nemo")
    with pytest.raises(UnsupportedFormat, match="a whole model is no set of adapters; convert it --to hf"):
        convert(source, tmp_path / "peft", to="peft")
    tiny.write(tmp_path / "hf")
    with pytest.raises(UnsupportedFormat, match="adapters"):
        convert(tmp_path / "hf", tmp_path / "peft", to="peft")
    assert not (tmp_path / "peft").exists()


def test_what_peft_wrote_is_recognized_and_compared_only(tmp_path):
    source = pack(tmp_path / "x.nemo", lora.adapters(CONFIG))
    convert(source, tmp_path / "peft", to="peft")
    assert recognize(tmp_path / "peft").name == "peft"
    assert verify(tmp_path / "peft").manifest
    (tmp_path / "peft" / "nemoconv_manifest.json").unlink()
    with pytest.raises(UnsupportedArchitecture, match="do not say what model"):
        convert(tmp_path / "peft", tmp_path / "hf", to="hf")


def test_an_archive_and_a_peft_directory_are_compared_either_way(tmp_path):
    source = pack(tmp_path / "x.nemo", lora.adapters(CONFIG))
    convert(source, tmp_path / "peft", to="peft")
    assert verify(tmp_path / "peft", source).equal
    assert verify(source, tmp_path / "peft").equal
    path = tmp_path / "peft" / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert not verify(tmp_path / "peft", source).equal


@pytest.mark.parametrize("to", ["hf", "nemo2", "nemo", "onnx"])
def test_a_peft_directory_is_never_a_model(tmp_path, to):
    source = pack(tmp_path / "x.nemo", lora.adapters(CONFIG))
    convert(source, tmp_path / "peft", to="peft")
    with pytest.raises(UnsupportedFormat, match="holds LoRA adapters, not a model"):
        convert(tmp_path / "peft", tmp_path / "out", to=to)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"peft_scheme": "ia3"}, UnsupportedConfig, "ia3"),
        ({"lora_tuning": {"weight_tying": True}}, UnsupportedConfig, "weight_tying"),
        ({"lora_tuning": {"layer_selection": [1, 2]}}, UnsupportedConfig, "layer_selection"),
        ({"lora_tuning": {"adapter_dim": 0}}, CorruptCheckpoint, "adapter_dim=0"),
        ({"lora_tuning": {"adapter_dim": 8}}, CorruptCheckpoint, "shape"),
        ({"lora_tuning": {"alpha": "much"}}, CorruptCheckpoint, "much"),
    ],
)
def test_what_is_refused_is_named(tmp_path, changes, error, says):
    peft = copy.deepcopy(lora.PEFT)
    peft["lora_tuning"] |= changes.pop("lora_tuning", {})
    source = pack(tmp_path / "x.nemo", lora.adapters(CONFIG), peft=peft | changes)
    with pytest.raises(error, match=says):
        convert(source, tmp_path / "peft", to="peft")
    assert not (tmp_path / "peft").exists()


def test_an_adapter_that_is_missing(tmp_path):
    state = lora.adapters(CONFIG)
    del state["model.decoder.layers.2.mlp.adapter_layer.lora_4htoh_adapter.linear_out.weight"]
    with pytest.raises(MappingError, match="missing"):
        convert(pack(tmp_path / "x.nemo", state), tmp_path / "peft", to="peft")
    state = lora.adapters(CONFIG)
    state["model.decoder.layers.2.mlp.adapter_layer.adapter_1.linear_out.weight"] = torch.ones(2, 2)
    with pytest.raises(MappingError, match="no rule"):
        convert(pack(tmp_path / "y.nemo", state), tmp_path / "peft", to="peft")
