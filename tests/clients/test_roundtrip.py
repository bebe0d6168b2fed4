"""Hugging Face -> NeMo 2 -> Hugging Face, judged by transformers, tokenizers, sentencepiece and safetensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemoconv.converters.look.verify import verify
from nemoconv.converters.registry import open_checkpoint
from nemoconv.converters.run.compare import Comparison
from nemoconv.converters.run.convert import convert
from nemoconv.errors import LayoutError, UnsupportedConfig
from nemoconv.stores.files import SourceFile

from . import models
from .models import VARIANTS, Variant, variant

pytest.importorskip("transformers")
pytest.importorskip("sentencepiece")

HF = Callable[[Variant], Path]
LAYOUTS = ((1, 1), (2, 1), (1, 2), (2, 2), (3, 1), (3, 3))
CASES = [
    pytest.param(v, layout, id=f"{v}-tp{layout[0]}pp{layout[1]}")
    for v in VARIANTS
    for layout in LAYOUTS
    if v.fits(*layout)
]
# who wrote it, with what; it says nothing of the model
NOT_OF_THE_MODEL = {"transformers_version", "_name_or_path"}


def there(source: Path, folder: Path, tp: int = 1, pp: int = 1, **options: Any) -> Path:
    """The NeMo 2 directory of a Hugging Face directory."""
    target = folder / f"nemo-tp{tp}pp{pp}"
    convert(
        source, target, to="nemo2", tensor_parallel_size=tp, pipeline_parallel_size=pp, verify=True, **options
    )
    return target


def and_back(source: Path, folder: Path, tp: int = 1, pp: int = 1, **options: Any) -> Path:
    """The Hugging Face directory after the way to NeMo 2 and back."""
    target = folder / "back"
    convert(there(source, folder, tp, pp), target, to="hf", **options)
    return target


def as_transformers_reads(folder: Path) -> dict[str, Any]:
    from transformers import AutoConfig

    read = AutoConfig.from_pretrained(folder).to_dict()
    return {key: value for key, value in read.items() if key not in NOT_OF_THE_MODEL}


def refuse(source: Path, target: Path, error: type[Exception], match: str, **options: Any) -> None:
    with pytest.raises(error, match=match):
        convert(source, target, to="nemo2", **options)
    assert not target.exists()


@pytest.mark.parametrize(("v", "layout"), CASES)
def test_the_way_to_nemo2_and_back_changes_nothing(
    hf: HF, tmp_path: Path, v: Variant, layout: tuple[int, int]
) -> None:
    source = hf(v)
    back = and_back(source, tmp_path, *layout)
    models.assert_same_tensors(source, back)
    assert as_transformers_reads(back) == as_transformers_reads(source)
    assert models.logits(back).equal(models.logits(source))


@pytest.mark.parametrize("layout", [(1, 1), (2, 2)], ids=str)
@pytest.mark.parametrize("name", ["both-biases", "tied", "fp16", "shards-fp32-mha"])
def test_every_bit_pattern_survives(tmp_path: Path, name: str, layout: tuple[int, int]) -> None:
    source = models.build(tmp_path / "hf", variant(name))
    models.fill_with_random_bits(source)
    assert any(b"\xff\xff" in data for _, _, data in models.tensors(source).values())  # NaNs among them
    models.assert_same_tensors(source, and_back(source, tmp_path, *layout))


def test_all_layouts_hold_the_same_model(hf: HF, tmp_path: Path) -> None:
    source = hf(variant("gqa"))
    for layout in [(1, 1), (2, 1), (1, 2), (2, 2)]:
        found = verify(there(source, tmp_path, *layout), source)
        assert isinstance(found, Comparison)
        assert found.equal, found.describe()
        assert found.tensors == 3 + 2 * 6  # as NeMo has them, where q, k, v are one tensor
    other = models.build(tmp_path / "other", variant("gqa"), seed=1)
    found = verify(tmp_path / "nemo-tp2pp2", other)
    assert isinstance(found, Comparison)
    assert not found.equal


def test_shards_of_any_size_come_back(hf: HF, tmp_path: Path) -> None:
    source = hf(variant("shards"))
    back = and_back(source, tmp_path, 2, 1, max_shard_nbytes=40_000)
    assert len(list(back.glob("model-*.safetensors"))) > 3
    models.assert_same_tensors(source, back)
    assert models.logits(back).equal(models.logits(source))
    index = json.loads((back / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(len(data) for _, _, data in models.tensors(back).values())


@pytest.mark.parametrize("name", ["gqa", "linear-v4"])
def test_the_tokenizer_comes_back(hf: HF, tmp_path: Path, name: str) -> None:
    from transformers import AutoTokenizer

    if variant(name).tokenizer == "sentencepiece":
        pytest.importorskip("google.protobuf", reason="transformers reads tokenizer.model with protobuf")
    source = hf(variant(name))
    back = and_back(source, tmp_path)
    before, after = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(back)
    assert type(after) is type(before)
    for text in models.TEXTS:
        assert after.encode(text) == before.encode(text)
    chat = [{"role": "user", "content": "hello"}]
    said = "<s>user\nhello</s>"
    assert before.apply_chat_template(chat, tokenize=False) == said
    assert after.apply_chat_template(chat, tokenize=False) == said
    # the class is written under the name that NeMo's transformers 4 knows too
    config, was = (json.loads((d / "tokenizer_config.json").read_text()) for d in (back, source))
    assert config.pop("tokenizer_class") in ("PreTrainedTokenizerFast", was["tokenizer_class"])
    assert config == {key: value for key, value in was.items() if key != "tokenizer_class"}
    for file in ("tokenizer.json", "tokenizer.model", "chat_template.jinja"):
        assert (back / file).exists() == (source / file).exists()
        if (source / file).exists():
            assert (back / file).read_bytes() == (source / file).read_bytes()


def test_the_sentencepiece_model_still_encodes(hf: HF, tmp_path: Path) -> None:
    import sentencepiece

    source = hf(variant("linear-v4"))
    back = and_back(source, tmp_path)
    before, after = (
        sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        for folder in (source, back)
    )
    assert [after.encode(text) for text in models.TEXTS] == [before.encode(text) for text in models.TEXTS]


def test_nemo2_holds_what_its_auto_tokenizer_loads(hf: HF, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    source = hf(variant("gqa"))
    folder = there(source, tmp_path) / "context" / "nemo_tokenizer"
    before, after = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(folder)
    assert [after.encode(text) for text in models.TEXTS] == [before.encode(text) for text in models.TEXTS]


def test_the_generation_config_comes_back(hf: HF, tmp_path: Path) -> None:
    from transformers import GenerationConfig

    source = hf(variant("gqa"))
    back = and_back(source, tmp_path)
    after = GenerationConfig.from_pretrained(back)
    assert after.to_dict() == GenerationConfig.from_pretrained(source).to_dict()
    assert (after.eos_token_id, after.temperature, after.max_new_tokens) == ([1, 2], 0.7, 17)
    assert GenerationConfig.from_pretrained(tmp_path / "nemo-tp1pp1/context/artifacts").temperature == 0.7


def test_the_output_reads_alike_in_both_generations_of_transformers(hf: HF, tmp_path: Path) -> None:
    for name in ("llama3-other", "llama3-other-v4"):
        back = and_back(hf(variant(name)), tmp_path / name)
        written = json.loads((back / "config.json").read_text())
        rope = {**models.LLAMA3_OTHER, "rope_theta": 50000.0}
        assert written["rope_parameters"] == rope
        assert {**written["rope_scaling"], "rope_theta": written["rope_theta"]} == rope
        assert written["dtype"] == written["torch_dtype"] == "bfloat16"


def test_a_vocabulary_that_tp_does_not_divide_is_padded_and_comes_back(hf: HF, tmp_path: Path) -> None:
    source = hf(variant("gqa", vocab=321))
    back = and_back(source, tmp_path, 2, 1)
    with open_checkpoint(tmp_path / "nemo-tp2pp1") as nemo:
        for name in ("embedding.word_embeddings.weight", "output_layer.weight"):
            assert nemo.spec(name).shape == (322, 64)
            assert not nemo.read(name)[321:].view("uint16").any()
    models.assert_same_tensors(source, back)
    assert as_transformers_reads(back)["vocab_size"] == 321
    assert models.logits(back).equal(models.logits(source))


def test_a_cast_is_the_cast_of_torch(hf: HF, tmp_path: Path) -> None:
    import safetensors.torch
    import torch

    source = hf(variant("fp32"))
    convert(source, tmp_path / "nemo", to="nemo2", tensor_parallel_size=2, dtype="bfloat16")
    convert(tmp_path / "nemo", tmp_path / "back", to="hf")
    before = safetensors.torch.load_file(source / "model.safetensors")
    after = safetensors.torch.load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].equal(tensor.to(torch.bfloat16)), name
    assert as_transformers_reads(tmp_path / "back")["dtype"] == "bfloat16"


@pytest.mark.parametrize("style", [4, 5])
@pytest.mark.parametrize("kind", ["yarn", "dynamic"])
def test_what_nemo_cannot_express_is_refused_by_name(hf: HF, tmp_path: Path, kind: str, style: int) -> None:
    rope = {"rope_type": kind, "factor": 4.0}
    source = hf(variant("gqa", rope=rope, style=style))
    refuse(source, tmp_path / "out", UnsupportedConfig, f"no rotary scaling of type '{kind}'")


def test_tp_must_divide_the_query_groups(hf: HF, tmp_path: Path) -> None:
    message = "num_query_groups=3; tensor parallel sizes that divide it: 1, 3"
    refuse(hf(variant("odd-groups")), tmp_path / "out", LayoutError, message, tensor_parallel_size=2)
    message = "num_query_groups=1; tensor parallel sizes that divide it: 1"
    refuse(hf(variant("mqa")), tmp_path / "out", LayoutError, message, tensor_parallel_size=3)


def test_pp_must_divide_the_layers(hf: HF, tmp_path: Path) -> None:
    refuse(hf(variant("odd-groups")), tmp_path / "out", LayoutError, "1, 3", pipeline_parallel_size=4)


def test_a_trained_bias_of_zeros_is_not_dropped_silently(
    hf: HF, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one kind of bias, the other kind is zeros in NeMo; if training moved those, they are kept or
    the conversion stops, but they never vanish."""
    import numpy

    nemo = there(hf(variant("attention-bias")), tmp_path)
    with open_checkpoint(nemo) as opened:
        place = opened.stored("decoder.layers.1.mlp.linear_fc2.bias").extents[0]
        assert not numpy.any(opened.read("decoder.layers.1.mlp.linear_fc2.bias").view("uint16"))
        name, offset = Path(place.file.path), place.offset
    with open(name, "r+b") as file:
        file.seek(offset)
        file.write(b"\x80\x3f")  # 1.0
    monkeypatch.setattr(SourceFile, "expect", lambda *_: None)  # training would have written its checksum
    with pytest.raises(ValueError, match=r"linear_fc2\.bias should be zero"):
        convert(nemo, tmp_path / "stopped", to="hf")
    (nemo / "nemoconv_manifest.json").unlink()
    convert(nemo, tmp_path / "kept", to="hf")
    assert as_transformers_reads(tmp_path / "kept")["mlp_bias"] is True
    assert models.logits(tmp_path / "kept").isfinite().all()


def test_biases_without_a_manifest_come_back_as_zeros(hf: HF, tmp_path: Path) -> None:
    source = hf(variant("mlp-bias"))
    nemo = there(source, tmp_path)
    (nemo / "nemoconv_manifest.json").unlink()
    convert(nemo, tmp_path / "back", to="hf")
    before, after = models.tensors(source), models.tensors(tmp_path / "back")
    assert {name: after[name] for name in before} == before
    added = after.keys() - before.keys()
    assert all(name.endswith("bias") and not any(after[name][2]) for name in added)
    assert len(added) == 8
    assert models.logits(tmp_path / "back").equal(models.logits(source))
