"""T5 and mT5: transformers writes them, we convert them, transformers and megatron-core load them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemoconv.converters.run.convert import convert

from . import models
from .checks import assert_megatron_agrees, megatron_difference
from .worlds import World

pytest.importorskip("transformers")

PLAIN = {
    "d_model": 64,
    "d_ff": 96,
    "d_kv": 24,
    "num_layers": 3,
    "num_heads": 4,
    "vocab_size": 130,
    "layer_norm_epsilon": 3e-5,
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
    "feed_forward_proj": "gated-gelu",
}
#: name -> (classes of transformers, arguments)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("T5", PLAIN),
    "t5-silu": ("T5", {**PLAIN, "d_kv": 16, "feed_forward_proj": "gated-silu"}),
    "mt5": ("MT5", PLAIN),
}


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    return models.directories(tmp_path_factory.mktemp("t5"), build, as_transformers_4)


def build(folder: Path, case: str) -> None:
    """A bfloat16 model with weights that keep activations and logits at order 1, and an output layer that is
    not the embedding."""
    import torch
    import transformers

    name, changes = CASES[case]
    config = getattr(transformers, f"{name}Config")(**changes)
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    model.lm_head.weight = torch.nn.Parameter(torch.empty(130, 64))
    model = model.to(torch.bfloat16)
    models.randomize(model)
    for stack in (model.encoder, model.decoder):  # scores are not divided by the root of a head's size
        for block in stack.block:
            block.layer[0].SelfAttention.q.weight.data *= 0.2
    for block in model.decoder.block:
        block.layer[1].EncDecAttention.q.weight.data *= 0.2
    model.save_pretrained(folder)


def as_transformers_4(file: Path) -> None:
    """Rewrite config.json as transformers 4 wrote it."""
    written = json.loads(file.read_text())
    written["torch_dtype"] = written.pop("dtype")
    written.pop("scale_decoder_outputs", None)
    written |= {"tie_word_embeddings": False, "n_positions": 512, "transformers_version": "4.53.3"}
    file.write_text(json.dumps(written, indent=2))


def load(folder: Path, dtype: str) -> Any:
    """The directory as transformers loads it, which must find every tensor and no other."""
    from transformers import AutoModelForSeq2SeqLM

    model, told = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    found = {key: value for key, value in told.items() if value}
    assert not found, found
    return model.eval()


def logits(folder: Path, dtype: str = "float32") -> Any:
    """Of a text read backwards, for the text itself."""
    import torch

    ids = models.ids(130, 32)
    with torch.no_grad():
        return load(folder, dtype)(input_ids=ids, decoder_input_ids=ids.flip(1)).logits


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_is_the_same_model(hf: Callable[..., Path], tmp_path: Path, case: str) -> None:
    from transformers import AutoConfig

    expected = logits(hf(case), "auto")
    assert 1 < expected.abs().max() < 40
    theirs = AutoConfig.from_pretrained(hf(case)).to_dict()
    for style, tp in ((4, 2), (5, 1)):
        nemo, back = tmp_path / f"nemo{style}", tmp_path / f"back{style}"
        convert(hf(case, style), nemo, to="nemo2", tensor_parallel_size=tp, verify=True)
        convert(nemo, back, to="hf", verify=True)
        models.assert_same_tensors(hf(case), back)
        assert logits(back, "auto").equal(expected)
        ours = AutoConfig.from_pretrained(back).to_dict()
        assert {key: ours.get(key) for key in theirs.keys() - {"_name_or_path"}} == {
            key: theirs[key] for key in theirs.keys() - {"_name_or_path"}
        }


@pytest.mark.parametrize("case", CASES)
def test_megatron_core_computes_the_same(
    hf: Callable[..., Path], gpt_world: World, tmp_path: Path, case: str
) -> None:
    for tp in (1, 2) if case == "t5" else (2,):
        nemo = tmp_path / f"nemo{tp}"
        convert(hf(case), nemo, to="nemo2", tensor_parallel_size=tp)
        assert_megatron_agrees(gpt_world, nemo, logits(hf(case)), tp, case)


def with_changes(source: Path, target: Path, rename: Callable[[str], str] = str, **changes: Any) -> Path:
    """A copy of a directory with keys of config.json changed, and tensors under other names."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **changes}))
    tensors = load_file(target / "model.safetensors")
    save_file({rename(name): tensor for name, tensor in tensors.items()}, target / "model.safetensors")
    return target


def exchanged(name: str) -> str:
    """The encoder's relative positions for the decoder's, and the reverse."""
    if "relative_attention_bias" not in name:
        return name
    return name.replace("decoder", "~").replace("encoder", "decoder").replace("~", "encoder")


@pytest.mark.parametrize(
    ("rename", "changes"),
    [
        (exchanged, {}),
        (lambda name: name.replace("wi_0", "~").replace("wi_1", "wi_0").replace("~", "wi_1"), {}),
        (str, {"feed_forward_proj": "gated-silu", "dense_act_fn": "silu"}),
    ],
)
def test_a_little_wrong_is_felt(
    hf: Callable[..., Path], gpt_world: World, tmp_path: Path, rename: Any, changes: dict[str, Any]
) -> None:
    source = with_changes(hf("t5"), tmp_path / "hf", rename, **changes)
    convert(source, tmp_path / "nemo", to="nemo2")
    found = megatron_difference(gpt_world, tmp_path / "nemo", logits(hf("t5")))
    print(f"{changes}: {found:.2e}")
    assert found > 2e-4
