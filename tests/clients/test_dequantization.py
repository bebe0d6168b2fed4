"""Quantised models: what transformers makes of their weights and what we make of them are the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemoconv.converters.run.convert import convert
from nemoconv.formats.safetensors import read_header
from nemoconv.resharding.decode.quantized import MXFP4, BlockScaledFP8, decoded
from nemoconv.stores.files import SourceFile
from nemoconv.tensors.dtypes import BY_NAME
from nemoconv.tensors.read import read_box
from nemoconv.tensors.stored import Extent, StoredTensor, contiguous_strides

from . import models
from .test_moe_architectures import build

pytest.importorskip("transformers")
import safetensors.torch
import torch

BF16 = BY_NAME["bfloat16"]


def stored(folder: Path, name: str, tensor: torch.Tensor, dtype: str) -> StoredTensor:
    (folder / name).write_bytes(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    shape = tuple(tensor.shape)
    strides = contiguous_strides(shape, tensor.element_size())
    extent = Extent(SourceFile(folder / name), 0, (0,) * len(shape), shape, strides)
    return StoredTensor(name, BY_NAME[dtype], shape, (extent,))


def bits(tensor: StoredTensor) -> torch.Tensor:
    box = read_box(tensor, (0,) * len(tensor.shape), tensor.shape)
    return torch.from_numpy(box.view("int16"))


def test_every_mxfp4_code_at_every_scale(tmp_path: Path) -> None:
    """All 256 bytes at all exponents but that of NaN."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 255, 16, 16).contiguous()
    scales = torch.arange(255, dtype=torch.uint8).reshape(1, 255, 1).expand(1, 255, 16).contiguous()
    theirs = convert_moe_packed_tensors(blocks, scales)
    encoding = MXFP4(stored(tmp_path, "b", blocks, "uint8"), stored(tmp_path, "s", scales, "uint8"))
    ours = bits(decoded("w", encoding, BF16, transposed=True))
    assert ours.equal(theirs.view(torch.int16))
    assert theirs.isfinite().float().mean() > 0.9


def test_every_fp8_code_at_many_scales(tmp_path: Path) -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    codes = torch.arange(256, dtype=torch.uint8).repeat(256, 1)
    codes[(codes & 127) == 127] = 0
    weight = codes.view(torch.float8_e4m3fn)
    generator = torch.Generator().manual_seed(1)
    scales = torch.randn(16, 16, generator=generator).exp() * 2.0 ** torch.randint(-20, 20, (16, 16))
    theirs = Fp8Dequantize(None)._dequantize_one(weight, scales, torch.bfloat16)
    reference = weight.float() * scales.repeat_interleave(16, 0).repeat_interleave(16, 1)
    assert theirs.equal(reference.to(torch.bfloat16))
    encoding = BlockScaledFP8(
        stored(tmp_path, "w", weight, "float8_e4m3fn"), stored(tmp_path, "s", scales, "float32"), (16, 16)
    )
    assert bits(decoded("w", encoding, BF16)).equal(theirs.view(torch.int16))
    whole = read_box(decoded("w", encoding, BY_NAME["float32"]), (0, 0), (256, 256))
    assert torch.from_numpy(whole.view("int32")).equal(reference.view(torch.int32))


def parameters(folder: Path, **how: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Every parameter as transformers loads it, and its logits."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **how).eval()
    with torch.no_grad():
        logits = model(models.ids(model.config.vocab_size)).logits
    return dict(model.state_dict()), logits


def assert_the_same_model(quantized: Path, back: Path, how: Any) -> None:
    theirs, expected = parameters(quantized, quantization_config=how)
    ours, logits = parameters(back)
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        assert tensor.dtype == ours[name].dtype
        assert tensor.equal(ours[name]), name
    assert logits.equal(expected)
    assert expected.abs().max() > 0.5


def rewrite(folder: Path, change: Any, said: dict[str, Any]) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors = {name: t.to(torch.bfloat16) if t.is_floating_point() else t for name, t in tensors.items()}
    change(tensors)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"dtype": "bfloat16", "quantization_config": said}
    (folder / "config.json").write_text(json.dumps(config))


def to_mxfp4(tensors: dict[str, torch.Tensor]) -> None:
    generator = torch.Generator().manual_seed(2)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inside, outside = tensors.pop(name).shape
        shape = (experts, outside, inside // 32)
        tensors[name + "_blocks"] = torch.randint(0, 256, (*shape, 16), generator=generator).to(torch.uint8)
        tensors[name + "_scales"] = torch.randint(120, 125, shape, generator=generator).to(torch.uint8)


def test_gpt_oss_in_mxfp4(tmp_path: Path) -> None:
    from transformers import Mxfp4Config

    source = build(tmp_path / "hf", "gpt_oss")
    rewrite(
        source, to_mxfp4, {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
    )
    report = convert(source, tmp_path / "nemo", to="nemo2", tensor_parallel_size=2, verify=True)
    assert "4 tensors quantized by mxfp4 are decoded to bfloat16" in report.notes
    convert(tmp_path / "nemo", tmp_path / "back", to="hf", verify=True)
    assert_the_same_model(source, tmp_path / "back", Mxfp4Config(dequantize=True))


def to_fp8(tensors: dict[str, torch.Tensor]) -> None:
    generator = torch.Generator().manual_seed(2)
    for name in [name for name in tensors if "_proj.weight" in name]:
        weight = tensors[name].float()
        rows, columns = weight.shape
        scales = torch.rand(rows // 8, columns // 8, generator=generator) / 100 + 0.001
        wide = scales.repeat_interleave(8, 0).repeat_interleave(8, 1)
        tensors[name] = (weight / wide).to(torch.float8_e4m3fn)
        tensors[name + "_scale_inv"] = scales


@pytest.mark.parametrize("case", ["qwen3_moe", "deepseek_v3"])
def test_experts_in_fp8(tmp_path: Path, case: str) -> None:
    from transformers import FineGrainedFP8Config

    source = build(tmp_path / "hf", case)
    how = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [8, 8]}
    rewrite(source, to_fp8, how)
    convert(source, tmp_path / "nemo", to="nemo2", expert_parallel_size=2, verify=True)
    convert(tmp_path / "nemo", tmp_path / "back", to="hf", verify=True)
    found = read_header(SourceFile(tmp_path / "back/model.safetensors"))[0]
    assert not any("scale" in name or tensor.dtype.itemsize == 1 for name, tensor in found.items())
    quantized = FineGrainedFP8Config(weight_block_size=(8, 8), dequantize=True)
    assert_the_same_model(source, tmp_path / "back", quantized)
