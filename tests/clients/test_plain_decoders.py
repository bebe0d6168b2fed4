"""Every decoder that NeMo 2 builds from its plain config class and transformers has a class for is proved by being
there: transformers writes a tiny one, we convert it, transformers, megatron-core and onnxruntime load it.

What is peculiar to one of them is in tests of its own; this is what all have to do.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemoconv.converters.registry import open_checkpoint
from nemoconv.converters.run.convert import convert
from nemoconv.errors import UnsupportedConfig
from nemoconv.mappings import architectures, described
from nemoconv.mappings.architecture import models as models_of
from nemoconv.mappings.hf.fields import write_config

from . import models, onnx_runs
from .checks import assert_megatron_agrees
from .proofs import is_plain_decoder
from .worlds import World

transformers = pytest.importorskip("transformers")

#: fields of every model config, of a model that is small but has two groups of heads
TINY = {
    "num_layers": 2,
    "hidden_size": 64,
    "ffn_hidden_size": 96,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "kv_channels": 16,
    "vocab_size": 130,
    "seq_length": 64,
    "init_method_std": 0.03,
}


PLAIN = [
    name
    for name in architectures()
    if is_plain_decoder(described(name))
    and name in transformers.models.auto.configuration_auto.CONFIG_MAPPING
]


def config(name: str) -> dict[str, Any]:
    """config.json of a tiny model."""
    architecture = described(name)
    assert architecture is not None
    model = {**models_of(architecture)[0], **TINY}
    try:
        return write_config(architecture.config, model)
    except UnsupportedConfig:  # as many keys as queries
        return write_config(architecture.config, {**model, "num_query_groups": TINY["num_attention_heads"]})


def build(folder: Path, name: str) -> None:
    """A bfloat16 model with weights that keep activations and logits at order 1, so that all matter."""
    import torch

    given = {key: value for key, value in config(name).items() if key not in ("dtype", "torch_dtype")}
    made = transformers.AutoConfig.for_model(name, **given, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model = transformers.AutoModelForCausalLM.from_config(made).to(torch.bfloat16)
    models.randomize(model)
    model.save_pretrained(folder)
    models.save_bpe(folder)


def as_transformers_4(file: Path) -> None:
    """Rewrite config.json as transformers 4 wrote it."""
    written = json.loads(file.read_text())
    written["torch_dtype"] = written.pop("dtype")
    if rope := written.pop("rope_parameters", None):
        written |= {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    file.write_text(json.dumps({**written, "transformers_version": "4.55.4"}, indent=2))


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    return models.directories(tmp_path_factory.mktemp("plain"), build, as_transformers_4)


def test_there_are_such_decoders() -> None:
    assert {"arcee", "smollm3", "gpt2"} <= set(PLAIN)


@pytest.mark.parametrize("name", PLAIN)
def test_there_and_back_is_the_same_model(hf: Callable[..., Path], tmp_path: Path, name: str) -> None:
    expected = models.logits_of(hf(name), "auto")
    for tp in (1, 2):
        convert(hf(name), tmp_path / f"nemo{tp}", to="nemo2", tensor_parallel_size=tp, verify=True)
        convert(tmp_path / f"nemo{tp}", tmp_path / f"back{tp}", to="hf", verify=True)
        models.assert_same_tensors(hf(name), tmp_path / f"back{tp}")
    assert models.logits_of(tmp_path / "back1", "auto").equal(expected)
    with open_checkpoint(hf(name)) as new, open_checkpoint(hf(name, 4)) as old:
        assert old.model().config == new.model().config


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("name", PLAIN)
def test_megatron_core_computes_the_same(
    hf: Callable[..., Path], gpt_world: World, tmp_path: Path, name: str, tp: int
) -> None:
    convert(hf(name), tmp_path / "nemo", to="nemo2", tensor_parallel_size=tp)
    assert_megatron_agrees(gpt_world, tmp_path / "nemo", models.logits_of(hf(name)), tp, name)


@pytest.mark.parametrize("name", [name for name in PLAIN if described(name).nemo1])  # type: ignore[union-attr]
def test_an_archive_holds_the_same_model(hf: Callable[..., Path], tmp_path: Path, name: str) -> None:
    for tp in (1, 2):
        convert(hf(name), tmp_path / f"{tp}.nemo", to="nemo", tensor_parallel_size=tp)
        convert(tmp_path / f"{tp}.nemo", tmp_path / f"back{tp}", to="hf", verify=True)
        models.assert_same_tensors(hf(name), tmp_path / f"back{tp}")
        assert json.loads((tmp_path / f"back{tp}/config.json").read_text())["model_type"] == name


@pytest.mark.parametrize("flavor", ["std", "genai"])
@pytest.mark.parametrize("name", PLAIN)
def test_an_onnx_graph_computes_the_same(
    hf: Callable[..., Path], tmp_path: Path, name: str, flavor: str
) -> None:
    pytest.importorskip("onnxruntime")
    convert(hf(name), tmp_path / "onnx", to="onnx", dtype="float32", flavor=flavor)
    run, model = onnx_runs.Run(tmp_path / "onnx"), onnx_runs.load(hf(name))
    assert onnx_runs.difference(run, model, padded=flavor == "std") <= 1e-4
    convert(hf(name), tmp_path / "packed", to="onnx", flavor=flavor, pack=True)
    convert(tmp_path / "packed", tmp_path / "back", to="hf", verify=True)
    models.assert_same_tensors(hf(name), tmp_path / "back")
