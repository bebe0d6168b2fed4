"""LLaVA, Qwen2-VL and Qwen2.5-VL: transformers writes them, we convert them, transformers loads them again and
computes the same from text and from an image. (NeMo's own code is asked in test_real_nemo_vision.py.)"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vision_configs import IMAGE, LLAVA, QWEN2_5_VL, QWEN2_VL

from nemoconv.converters.run.convert import convert
from nemoconv.mappings import load_table

from . import models

pytest.importorskip("transformers")

#: name -> config.json as the hub has it
CASES: dict[str, dict[str, Any]] = {
    "llava": LLAVA,
    "llava-full": {**LLAVA, "vision_feature_select_strategy": "full", "vision_feature_layer": 3},
    "llava-tied": {**LLAVA, "text_config": {**LLAVA["text_config"], "tie_word_embeddings": True}},
    "qwen2_vl": QWEN2_VL,
    "qwen2_vl-tied": {**QWEN2_VL, "tie_word_embeddings": True},
    "qwen2_5_vl": QWEN2_5_VL,
}
#: patches of Qwen's image: of another height than width, and more than a window has
_GRID = (1, 32, 4)


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    return models.directories(tmp_path_factory.mktemp("vision"), build, as_the_hub)


def as_the_hub(file: Path) -> None:
    """Config.json as it lies on the hub, flat as transformers 4 wrote it."""
    file.write_text(json.dumps(CASES[file.parent.name.rpartition("-")[0]]))


def build(folder: Path, case: str) -> None:
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

    config = CASES[case]
    settings = CONFIG_MAPPING[config["model_type"]].from_dict(json.loads(json.dumps(config)))
    model = AutoModelForImageTextToText.from_config(settings).to(torch.bfloat16)
    models.randomize(model)
    model.save_pretrained(folder)
    models.save_bpe(folder)
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}')


def load(folder: Path, dtype: str = "auto") -> Any:
    """The model as transformers loads it, which must find every tensor and no other."""
    from transformers import AutoModelForImageTextToText

    model, told = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    found = {key: value for key, value in told.items() if value}
    assert not found, found
    return model.eval()


def image_of(model: Any) -> dict[str, Any]:
    """An image as the model's processor would give it, with the number of its tokens."""
    import torch

    generator = torch.Generator().manual_seed(3)
    vision = model.config.vision_config
    if model.config.model_type == "llava":
        side = vision.image_size // vision.patch_size
        pixels = torch.randn(1, 3, vision.image_size, vision.image_size, generator=generator)
        kept = model.config.vision_feature_select_strategy == "full"
        return {"pixel_values": 0.2 * pixels, "tokens": side * side + kept}
    patches = _GRID[0] * _GRID[1] * _GRID[2]
    pixels = torch.randn(patches, 6 * vision.patch_size**2, generator=generator)
    return {"pixel_values": 0.2 * pixels, "image_grid_thw": torch.tensor([_GRID]), "tokens": patches // 4}


def logits_with_image(model: Any, **changes: Any) -> Any:
    """Logits of a text around an image."""
    import torch

    inputs = image_of(model)
    count = inputs.pop("tokens")
    text = models.ids(130, 16)[:1]
    text[text == IMAGE] = IMAGE + 2
    ids = torch.cat([text[:, :7], torch.full((1, count), IMAGE), text[:, 7:]], 1)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    if "image_grid_thw" in inputs:
        inputs["mm_token_type_ids"] = (ids == IMAGE).int()
    with torch.no_grad():
        return model(input_ids=ids, **inputs, **changes).logits


def text_logits(model: Any) -> Any:
    import torch

    ids = models.ids(130, 32)
    ids[ids == IMAGE] = IMAGE + 2
    with torch.no_grad():
        return model(input_ids=ids).logits


def spelled(folder: Path, case: str) -> dict[str, Any]:
    """The tensors under the names of the table: transformers 5 drops a part of those of LLaVA's tower."""
    table = load_table(CASES[case]["model_type"])
    return {table.spelled(name): data for name, data in models.tensors(folder).items()}


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_is_the_same_model(hf: Callable[..., Path], tmp_path: Path, case: str) -> None:
    original = load(hf(case))
    expected, with_image = text_logits(original), logits_with_image(original)
    assert 1 < expected.abs().max() < 40
    for style, tp in ((4, 1), (5, 2)):
        nemo, back = tmp_path / f"nemo{style}", tmp_path / f"back{style}"
        convert(hf(case, style), nemo, to="nemo2", tensor_parallel_size=tp, verify=True)
        convert(nemo, back, to="hf", verify=True)
        assert spelled(hf(case), case) == models.tensors(back)
        again = load(back)
        assert text_logits(again).equal(expected)
        assert logits_with_image(again).equal(with_image)
        assert (back / "preprocessor_config.json").read_bytes()
        assert (back / "chat_template.jinja").read_text() == models.CHAT_TEMPLATE
        assert_same_config(hf(case), back)


def assert_same_config(first: Path, second: Path) -> None:
    """For transformers, both directories hold the same config."""
    from transformers import AutoConfig

    ours, theirs = (AutoConfig.from_pretrained(folder).to_dict() for folder in (second, first))
    unread = {"_name_or_path", "ignore_index", "in_chans", "spatial_patch_size", "vision_token_id", "type"}
    unread |= {"bos_token_id", "eos_token_id", "max_window_layers"}
    assert plain(ours, unread) == plain(theirs, unread)


def plain(config: dict[str, Any], unread: set[str]) -> dict[str, Any]:
    """A config without what says nothing of the model."""
    named = {key: plain(value, unread) if isinstance(value, dict) else value for key, value in config.items()}
    return {key: value for key, value in named.items() if key not in unread}


#: a tensor of each part, as transformers names it
FELT = {
    "llava": (
        "vision_tower.embeddings.class_embedding",
        "vision_tower.embeddings.position_embedding.weight",
        "vision_tower.encoder.layers.0.self_attn.v_proj.weight",
        "multi_modal_projector.linear_1.bias",
        "language_model.layers.1.self_attn.k_proj.weight",
    ),
    "qwen2_vl": (
        "visual.blocks.2.attn.qkv.bias",
        "visual.merger.ln_q.bias",
        "layers.1.self_attn.q_proj.bias",
    ),
    "qwen2_5_vl": (
        "visual.patch_embed.proj.weight",
        "visual.blocks.0.mlp.up_proj.bias",
        "merger.mlp.0.weight",
    ),
}


@pytest.mark.parametrize("case", FELT)
def test_every_part_is_felt(hf: Callable[..., Path], case: str) -> None:
    """The control: a change in any part changes the logits that the tests compare."""
    import torch

    model = load(hf(case))
    expected = logits_with_image(model)
    parameters = dict(model.named_parameters())
    for ending in FELT[case]:
        parameter = next(p for name, p in parameters.items() if name.endswith(ending))
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.copy_(kept.flip(0))
            assert not logits_with_image(model).equal(expected), ending
            parameter.copy_(kept)
    assert logits_with_image(model).equal(expected)


def test_windows_and_positions_of_the_tower_are_felt(hf: Callable[..., Path], tmp_path: Path) -> None:
    """Config keys of the tower that NeMo has come back as they were, and matter."""
    convert(hf("qwen2_5_vl"), tmp_path / "nemo", to="nemo2")
    convert(tmp_path / "nemo", tmp_path / "back", to="hf")
    expected = logits_with_image(load(tmp_path / "back"))
    file = tmp_path / "back" / "config.json"
    config = json.loads(file.read_text())
    for key, value in (("fullatt_block_indexes", [0, 1, 2]), ("window_size", 56)):
        changed = {**config, "vision_config": {**config["vision_config"], key: value}}
        file.write_text(json.dumps(changed))
        assert not logits_with_image(load(tmp_path / "back")).equal(expected)
