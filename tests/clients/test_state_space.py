"""State-space models: transformers writes them, we convert them, transformers and megatron-core load them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nemoconv.converters.run.convert import convert
from nemoconv.errors import LayoutError
from nemoconv.testing import data_of

from . import models
from .worlds import World

pytest.importorskip("transformers")

TOLERANCE = 2e-4  # float32
MAMBA = {
    "hidden_size": 32,
    "num_heads": 8,
    "head_dim": 8,
    "state_size": 16,
    "num_hidden_layers": 3,
    "n_groups": 1,
    "vocab_size": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HYBRID = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "layers_block_type": ["linear_attention", "mlp", "full_attention", "linear_attention", "mlp"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "mamba_num_heads": 8,
    "mamba_head_dim": 12,
    "n_groups": 4,
    "ssm_state_size": 16,
    "vocab_size": 128,
    "max_position_embeddings": 128,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba2": ("Mamba2Config", MAMBA),
    "mamba2-tied": ("Mamba2Config", {**MAMBA, "tie_word_embeddings": True, "state_size": 8}),
    "nemotron_h": ("NemotronHConfig", HYBRID),
    "nemotron_h-wide": ("NemotronHConfig", {**HYBRID, "num_key_value_heads": 4, "n_groups": 2}),
}
#: says nothing of the mathematics, or says again what another key says
UNREAD = {"_name_or_path", "transformers_version", "time_step_limit", "layer_types"}


def build(folder: Path, case: str) -> Path:
    """A bfloat16 model whose activations are of order 1 and whose states decay at several speeds."""
    import torch
    import transformers

    name, arguments = CASES[case]
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**arguments))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for key, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if key.endswith(("A_log", "dt_bias", "bias")):
                noise *= 0.5
            elif key.endswith("D") or p.ndim == 1:
                noise = 1 + 0.3 * noise
            elif "embed" not in key or arguments.get("tie_word_embeddings"):
                noise *= 1.5 / p[0].numel() ** 0.5
            p.copy_(noise)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ssm(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("ssm")

    def directory(case: str) -> Path:
        return root / case if (root / case).exists() else build(root / case, case)

    return directory


Ssm = Callable[[str], Path]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tp", [1, 2])
def test_there_and_back_through_nemo_2(ssm: Ssm, tmp_path: Path, case: str, tp: int) -> None:
    source, nemo, back = ssm(case), tmp_path / "nemo", tmp_path / "back"
    if case.startswith("mamba2") and tp == 2:
        with pytest.raises(LayoutError, match="mamba_num_groups=1; tensor parallel sizes that divide it: 1$"):
            convert(source, nemo, to="nemo2", tensor_parallel_size=tp)
        assert not nemo.exists()
        return
    convert(source, nemo, to="nemo2", tensor_parallel_size=tp, verify=True)
    convert(nemo, back, to="hf", verify=True)
    assert_same_tensors(source, back)
    expected = models.logits(source)
    assert 0.5 < expected.abs().max() < 50
    assert models.logits(back).equal(expected)
    before, after = (models.load(folder).config.to_dict() for folder in (source, back))
    assert {k: after.get(k) for k in before if k not in UNREAD} == {
        k: v for k, v in before.items() if k not in UNREAD
    }


def assert_same_tensors(a: Path, b: Path) -> None:
    """The same bytes under the same names, but for what transformers and the models' own code call
    differently."""
    ours, theirs = (
        {n.replace("embedding.", "embeddings."): d for n, d in data_of(f).items()} for f in (a, b)
    )
    assert ours == theirs


@pytest.mark.parametrize("case", ["nemotron_h", "mamba2"])
def test_older_configs_mean_the_same(ssm: Ssm, tmp_path: Path, case: str) -> None:
    source, older = ssm(case), tmp_path / "older"
    shutil.copytree(source, older)
    config = json.loads((source / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype")
    if case == "nemotron_h":
        letters = {"linear_attention": "M", "mlp": "-", "full_attention": "*"}
        words = config.pop("layers_block_type", None) or config.pop("layer_types")
        config["hybrid_override_pattern"] = "".join(letters[word] for word in words)
        config["num_hidden_layers"] = len(words)
        config["attention_head_dim"] = config.pop("head_dim")
        config["time_step_limit"] = [0.0, "Infinity"]
        config["auto_map"] = {"AutoModelForCausalLM": "modeling_nemotron_h.NemotronHForCausalLM"}
        config.pop("layer_types", None)
    (older / "config.json").write_text(json.dumps(config))
    for folder in (source, older):
        convert(folder, tmp_path / f"nemo-{folder.name}", to="nemo2")
    one, other = (tmp_path / f"nemo-{folder.name}" for folder in (source, older))
    for name in ("context/io.json", "weights/.metadata", "weights/__0_0.distcp"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


@pytest.fixture(scope="module")
def mamba_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Processes for Megatron jobs with these architectures."""
    pytest.importorskip("megatron.core", reason="megatron-core is not installed")
    pytest.importorskip("einops", reason="megatron-core's mixers need it")
    script = Path(__file__).with_name("megatron_mamba_rank.py")
    ranks = World(tmp_path_factory.mktemp("mamba_world") / "stderr", script)
    yield ranks
    ranks.close()


def distance(world: World, nemo: Path, source: Path, tp: int) -> float:
    import torch

    expected = models.logits(source, "float32")
    reference = nemo.parent / "reference.pt"
    torch.save({"ids": models.ids(expected.shape[-1]), "logits": expected}, reference)
    answers = world.run("compare", directory=str(nemo), reference=str(reference), tp=tp, pp=1)
    return max(answer["diff"] for answer in answers)


@pytest.mark.parametrize(
    ("case", "tp"),
    [("mamba2", 1), ("mamba2-tied", 1), ("nemotron_h", 1), ("nemotron_h", 2), ("nemotron_h-wide", 2)],
)
def test_megatron_core_computes_the_same(
    ssm: Ssm, mamba_world: World, tmp_path: Path, case: str, tp: int
) -> None:
    convert(ssm(case), tmp_path / "nemo", to="nemo2", tensor_parallel_size=tp)
    found = distance(mamba_world, tmp_path / "nemo", ssm(case), tp)
    print(f"{case} tp{tp}: {found:.1e}")
    assert found < TOLERANCE


@pytest.mark.parametrize("what", ["A_log", "D", "dt_bias", "conv1d.weight", "in_proj.weight", "norm.weight"])
def test_the_judge_sees_a_mixer_in_disorder(ssm: Ssm, mamba_world: World, tmp_path: Path, what: str) -> None:
    """One tensor whose rows are turned by one."""
    import safetensors.torch

    source = tmp_path / "hf"
    shutil.copytree(ssm("nemotron_h"), source)
    tensors = safetensors.torch.load_file(source / "model.safetensors")
    (name,) = (n for n in tensors if n.endswith(f"layers.0.mixer.{what}"))
    tensors[name] = tensors[name].roll(1, 0)
    safetensors.torch.save_file(tensors, source / "model.safetensors", {"format": "pt"})
    convert(source, tmp_path / "nemo", to="nemo2")
    assert distance(mamba_world, tmp_path / "nemo", ssm("nemotron_h"), 1) > 10 * TOLERANCE
