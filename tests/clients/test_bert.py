"""BERT: transformers writes it, we convert it, transformers and megatron-core load it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nemoconv.converters.run.convert import convert

from . import models
from .checks import assert_megatron_agrees, megatron_difference
from .worlds import World

pytest.importorskip("transformers")

CLASSES = ("BertModel", "BertForMaskedLM", "BertForPreTraining")


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A directory for each class, built once."""
    import torch
    import transformers

    root = tmp_path_factory.mktemp("bert")

    def directory(name: str) -> Path:
        if not (root / name).exists():
            config = transformers.BertConfig(
                hidden_size=64,
                intermediate_size=96,
                num_hidden_layers=3,
                num_attention_heads=4,
                vocab_size=130,
                max_position_embeddings=64,
                layer_norm_eps=3e-5,
            )
            model = getattr(transformers, name)(config).to(torch.bfloat16)
            models.randomize(model)
            model.save_pretrained(root / name)
        return root / name

    return directory


def computed(folder: Path, name: str) -> Any:
    """What transformers computes, which must find every tensor and no other, laid out as our rank does."""
    import torch
    import transformers

    cls = getattr(transformers, name)
    model, told = cls.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not {key: value for key, value in told.items() if value}
    ids = models.ids(130, 32)
    with torch.no_grad():
        out = model.eval()(ids, token_type_ids=ids % 2)
    if name == "BertForMaskedLM":
        return out.logits
    states, last = (
        (out.last_hidden_state, out.pooler_output)
        if name == "BertModel"
        else (out.prediction_logits, out.seq_relationship_logits)
    )
    return torch.cat(
        [states, torch.nn.functional.pad(last, (0, states.shape[-1] - last.shape[-1]))[:, None]], 1
    )


@pytest.fixture(scope="module")
def bert_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Processes for Megatron jobs with BERT."""
    pytest.importorskip("megatron.core", reason="megatron-core is not installed")
    script = Path(__file__).with_name("megatron_bert_rank.py")
    ranks = World(tmp_path_factory.mktemp("bert_world") / "stderr", script)
    yield ranks
    ranks.close()


@pytest.mark.parametrize("name", CLASSES)
def test_there_and_back_and_in_megatron_core(
    hf: Callable[[str], Path], bert_world: World, tmp_path: Path, name: str
) -> None:
    source, expected = hf(name), computed(hf(name), name)
    assert 1 < expected.abs().max() < 40
    for tp in (1, 2):
        nemo, back = tmp_path / f"nemo{tp}", tmp_path / f"back{tp}"
        convert(source, nemo, to="nemo2", tensor_parallel_size=tp, verify=True)
        convert(nemo, back, to="hf", verify=True)
        models.assert_same_tensors(source, back)
        assert json.loads((back / "config.json").read_text())["architectures"] == [name]
        assert computed(back, name).equal(expected)
        assert_megatron_agrees(bert_world, nemo, expected, tp, name)


@pytest.mark.parametrize("wrong", [{"layer_norm_eps": 1e-2}, {"hidden_act": "gelu_new"}])
def test_a_config_that_is_a_little_wrong_is_felt(
    hf: Callable[[str], Path], bert_world: World, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    expected = computed(hf("BertForMaskedLM"), "BertForMaskedLM")
    shutil.copytree(hf("BertForMaskedLM"), tmp_path / "hf")
    config = json.loads((tmp_path / "hf/config.json").read_text())
    (tmp_path / "hf/config.json").write_text(json.dumps({**config, **wrong}))
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2")
    found = megatron_difference(bert_world, tmp_path / "nemo", expected)
    print(f"{wrong}: {found:.2e}")
    assert found > 2e-4
