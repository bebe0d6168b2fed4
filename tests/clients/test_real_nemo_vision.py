"""The real NeMo 2.5.3 and vision-language models: it loads what we write and computes what transformers computes,
imports to what we write, and exports it. See real_nemo/README.md."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from vision_configs import IMAGE, LLAVA, QWEN2_5_VL, QWEN2_VL, changed

from nemoconv.converters.run.convert import convert
from nemoconv.formats.torch.dist import read_metadata
from nemoconv.mappings import samples
from nemoconv.stores.files import SourceDir
from nemoconv.testing import data_of

from . import models
from . import test_vision_language as vision

PYTHON = os.environ.get("NEMOCONV_NEMO_PYTHON")
#: NeMo's connectors for Qwen's models want transformers 4.51.3 or older, that for LLaVA a newer one
OLDER = os.environ.get("NEMOCONV_NEMO_TRANSFORMERS")
pytestmark = pytest.mark.skipif(
    not PYTHON, reason="NEMOCONV_NEMO_PYTHON does not name a Python that has NeMo (real_nemo/README.md)"
)
CHILD = Path(__file__).with_name("real_nemo") / "vision_child.py"
TIMEOUT = 600
TOLERANCE = 2e-4  # float32; the largest logit is about 6

#: of the sizes that NeMo's exporter takes from nowhere
CONNECTED = {
    "llava": LLAVA,
    "qwen2_vl": changed(QWEN2_VL, "vision_config.mlp_ratio", 4),
    "qwen2_5_vl": changed(QWEN2_5_VL, "vision_config.intermediate_size", 3420),
}


def nemo(job: str, *folders: Path, architecture: str = "llava") -> dict[str, Any]:
    """The answer of NeMo's process."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    for name in ("PYTHONPATH", "PYTEST_CURRENT_TEST"):
        environment.pop(name, None)
    if architecture != "llava" and OLDER:
        environment["PYTHONPATH"] = OLDER
    command = [str(PYTHON), "-W", "ignore", str(CHILD), job, *map(str, folders)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=TIMEOUT, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def for_transformers_4(folder: Path) -> None:
    settings = folder / "tokenizer_config.json"
    told = {**json.loads(settings.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}
    settings.write_text(json.dumps(told))


def arguments(model: Any) -> dict[str, Any]:
    """What NeMo's model is called with for the text and the image of :mod:`test_vision_language`."""
    import torch

    inputs = vision.image_of(model)
    text = models.ids(130, 16)[:1]
    text[text == IMAGE] = IMAGE + 2
    count = inputs.pop("tokens")
    if model.config.model_type == "llava":  # one token stands for the whole image
        ids = torch.cat([text[:, :7], torch.tensor([[-200]]), text[:, 7:]], 1)
        positions = torch.arange(ids.shape[1])[None]
        return {"input_ids": ids, "position_ids": positions, "images": inputs["pixel_values"]}
    ids = torch.cat([text[:, :7], torch.full((1, count), -200), text[:, 7:]], 1)
    theirs = torch.where(ids < 0, IMAGE, ids)
    # NeMo would look for a token of the real vocabulary, which a tiny one has not
    positions, _ = model.model.get_rope_index(
        theirs, mm_token_type_ids=(ids < 0).int(), image_grid_thw=inputs["image_grid_thw"]
    )
    return {"input_ids": ids, "position_ids": positions, **inputs}


@pytest.mark.parametrize("case", ["llava", "llava-full", "qwen2_vl", "qwen2_5_vl"])
def test_nemos_model_computes_the_same(tmp_path: Path, case: str) -> None:
    import torch

    vision.build(tmp_path / "bfloat16", vision.CASES[case])
    source = tmp_path / "float32"
    convert(tmp_path / "bfloat16", source, to="hf", dtype="float32")
    for_transformers_4(source)
    model = vision.load(source)
    expected = vision.logits_with_image(model)
    torch.save(arguments(model), tmp_path / "inputs.pt")
    convert(source, tmp_path / "nemo", to="nemo2", tensor_parallel_size=2)
    nemo("logits", tmp_path / "nemo", tmp_path / "inputs.pt", tmp_path / "logits.pt")
    found = torch.load(tmp_path / "logits.pt")
    print(f"{case}: {(found - expected).abs().max():.2e} of {expected.abs().max():.1f}")
    assert (found - expected).abs().max() <= TOLERANCE
    assert found.argmax(-1).equal(expected.argmax(-1))


def test_a_config_that_is_a_little_wrong_is_felt(tmp_path: Path) -> None:
    """The control: NeMo computes by the fields that we write."""
    import torch

    vision.build(tmp_path / "bfloat16", QWEN2_5_VL)
    convert(tmp_path / "bfloat16", tmp_path / "hf", to="hf", dtype="float32")
    for_transformers_4(tmp_path / "hf")
    model = vision.load(tmp_path / "hf")
    torch.save(arguments(model), tmp_path / "inputs.pt")
    expected = vision.logits_with_image(model)
    file = tmp_path / "hf" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(changed(config, "vision_config.fullatt_block_indexes", [0, 1, 2])))
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2")
    nemo("logits", tmp_path / "nemo", tmp_path / "inputs.pt", tmp_path / "logits.pt")
    assert (torch.load(tmp_path / "logits.pt") - expected).abs().max() > 2 * TOLERANCE


def build(folder: Path, architecture: str) -> Path:
    """A tiny model with a tokenizer, in the dtype that NeMo's importer brings it to."""
    if architecture != "llava" and not OLDER:
        pytest.skip("NEMOCONV_NEMO_TRANSFORMERS does not name a folder with transformers 4.51.3")
    samples.build(folder / "bfloat16", CONNECTED[architecture])
    models.save_bpe(folder / "bfloat16")
    for_transformers_4(folder / "bfloat16")
    if architecture != "llava":
        return folder / "bfloat16"
    convert(folder / "bfloat16", folder / "float32", to="hf", dtype="float32")
    return folder / "float32"


@pytest.mark.parametrize("architecture", CONNECTED)
def test_nemo_imports_to_what_we_write(tmp_path: Path, architecture: str) -> None:
    source = build(tmp_path, architecture)
    convert(source, tmp_path / "ours", to="nemo2")
    answer = nemo("import", source, tmp_path / "ours", tmp_path / "theirs", architecture=architecture)
    assert answer["version"] == {"qwen2_vl": "qwen2-vl", "qwen2_5_vl": "qwen25-vl"}.get(architecture)
    stored = [read_metadata(SourceDir(tmp_path / name), "weights") for name in ("ours", "theirs")]
    keys = [{name: (t.dtype, t.shape) for name, t in metadata.tensors.items()} for metadata in stored]
    assert keys[0] == keys[1]
    assert stored[0].objects.keys() == stored[1].objects.keys()
    assert data_of(tmp_path / "theirs") == data_of(tmp_path / "ours")
    convert(tmp_path / "theirs", tmp_path / "back", to="hf")
    assert data_of(tmp_path / "back") == data_of(source)


@pytest.mark.parametrize("architecture", ["qwen2_vl", "qwen2_5_vl"])
def test_nemo_exports_what_we_wrote(tmp_path: Path, architecture: str) -> None:
    """(It has no exporter for LLaVA.)"""
    source = build(tmp_path, architecture)
    convert(source, tmp_path / "nemo", to="nemo2", tensor_parallel_size=2)
    nemo("export", tmp_path / "nemo", tmp_path / "exported", architecture=architecture)
    models.assert_same_tensors(source, tmp_path / "exported")
