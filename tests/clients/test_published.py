"""Configs as they were published: converted with transformers' logits, or refused with the right reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemoconv.converters.run.convert import convert
from nemoconv.errors import UnsupportedError

from . import models
from .published import CONVERTED, REFUSED

DOCUMENT = Path(__file__).parents[2] / "docs" / "published.md"


def logits(folder: Path) -> Any:
    import torch
    import transformers

    config = json.loads((folder / "config.json").read_text())
    name = config["architectures"][0].replace("LLaMA", "Llama")
    model, info = getattr(transformers, name).from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    ids = torch.arange(3, 14)[None]
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), **more).logits


def publish(folder: Path, config: dict[str, Any]) -> None:
    """A directory with random weights of transformers' own class and this very config.json."""
    import torch
    import transformers

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    name = config["architectures"][0].replace("LLaMA", "Llama")
    torch.manual_seed(1)
    model = getattr(transformers, name)(transformers.AutoConfig.from_pretrained(folder)).to(torch.float32)
    if config.get("tie_word_embeddings") is False and model.get_output_embeddings() is not None:
        model.get_output_embeddings().weight = torch.nn.Parameter(model.get_output_embeddings().weight * 2)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.requires_grad or parameter.dim() > 1:
                parameter.mul_(4)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("name", CONVERTED)
def test_it_is_converted_with_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    config = CONVERTED[name]
    publish(tmp_path / "hf", config)
    own_code = ["auto_map"] if "auto_map" in config else []
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2", allow_ignored=own_code)
    convert(tmp_path / "nemo", tmp_path / "back", to="hf")
    models.assert_same_tensors(tmp_path / "hf", tmp_path / "back")
    assert logits(tmp_path / "back").equal(logits(tmp_path / "hf"))


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_with_its_reason(name: str, tmp_path: Path) -> None:
    import numpy
    from safetensors.numpy import save_file

    config, reason = REFUSED[name]
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    save_file({"x": numpy.zeros(1, numpy.float32)}, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(UnsupportedError, match=reason):
        convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2")


def table() -> str:
    """The table of docs/published.md."""
    rows = [f"| {name} | `{config['model_type']}` | converted |" for name, config in CONVERTED.items()]
    for name, (config, reason) in REFUSED.items():
        rows.append(f"| {name} | `{config['model_type']}` | refused: {reason.replace('|', ' or ')} |")
    return "\n".join(sorted(rows, key=str.lower))


def test_the_page_lists_them() -> None:
    assert table() in DOCUMENT.read_text()
