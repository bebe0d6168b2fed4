"""ONNX graphs of every architecture against transformers, run by onnxruntime and onnxruntime-genai."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemoconv.converters.run.convert import convert
from nemoconv.converters.run.onnx_in_place import add_graph
from nemoconv.errors import UnsupportedConfig, UsageError

from . import models, onnx_models, onnx_runs
from .onnx_models import CASES, CONTROLS, ONE_FLAVOR
from .onnx_runs import LENGTH, Run, difference

pytest.importorskip("transformers")
pytest.importorskip("onnxruntime")

TOLERANCE = 1e-4  # float32; the largest logit is about 5
FELT = 1e-3
FLAVORS = ("std", "genai")
FLAVORED = [
    (case, flavor) for case in CASES for flavor in FLAVORS if flavor == "std" or case not in ONE_FLAVOR
]


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    """Directories of cases and transformers' models of them, each built once."""
    root = tmp_path_factory.mktemp("onnx")
    built: dict[str, tuple[Path, Any]] = {}

    def of(case: str) -> tuple[Path, Any]:
        if case not in built:
            folder = onnx_models.build(root / case, case)
            built[case] = folder, onnx_runs.load(folder)
        return built[case]

    return of


@pytest.mark.parametrize(("case", "flavor"), FLAVORED)
def test_logits_with_a_cache_are_those_of_transformers(
    hf: Callable[[str], tuple[Path, Any]], tmp_path: Path, case: str, flavor: str
) -> None:
    folder, model = hf(case)
    convert(folder, tmp_path / "onnx", to="onnx", flavor=flavor)
    run = Run(tmp_path / "onnx")
    assert difference(run, model) <= TOLERANCE
    if flavor == "std":
        assert difference(run, model, padded=True) <= TOLERANCE
        assert difference(run, model, padded=True, steps=(5, 4, 7, LENGTH - 16)) <= TOLERANCE
        assert difference(run, model, steps=(LENGTH,)) <= TOLERANCE


@pytest.mark.parametrize(
    ("case", "change"), [(case, change) for case, changes in CONTROLS.items() for change in changes]
)
def test_what_the_config_says_is_felt(
    hf: Callable[[str], tuple[Path, Any]], tmp_path: Path, case: str, change: dict[str, Any]
) -> None:
    folder, model = hf(case)
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    config = json.loads((other / "config.json").read_text())
    if "rope_parameters" in config:
        config = as_transformers_4(config)
    (other / "config.json").write_text(json.dumps({**config, **change}))
    for flavor in ("std",) if case in ONE_FLAVOR else FLAVORS:
        convert(other, tmp_path / flavor, to="onnx", flavor=flavor)
        assert difference(Run(tmp_path / flavor), model) > FELT


def as_transformers_4(config: dict[str, Any]) -> dict[str, Any]:
    """The rotary embedding in the keys of transformers 4, where each can be changed by itself."""
    rope = config.pop("rope_parameters")
    if "full_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    config["rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        config["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    return config


@pytest.mark.parametrize(("case", "flavor"), FLAVORED)
def test_genai_generates_what_transformers_would(
    hf: Callable[[str], tuple[Path, Any]], tmp_path: Path, case: str, flavor: str
) -> None:
    pytest.importorskip("onnxruntime_genai")
    from transformers import AutoTokenizer

    folder, model = hf(case)
    convert(folder, tmp_path / "onnx", to="onnx", flavor=flavor)
    prompt = "the cat sat on two boxes"
    ids, found = onnx_runs.generated(tmp_path / "onnx", prompt, 12)
    assert ids == AutoTokenizer.from_pretrained(folder)(prompt)["input_ids"]
    assert len(found) == 12
    assert found == onnx_runs.best(model, ids, found, [1])


def test_attention_in_chunks_has_one_flavor(hf: Callable[[str], tuple[Path, Any]], tmp_path: Path) -> None:
    folder, _ = hf("llama4_text")
    with pytest.raises(UnsupportedConfig, match="attention in chunks cannot be said with onnxruntime's"):
        convert(folder, tmp_path / "onnx", to="onnx", flavor="genai")
    assert not (tmp_path / "onnx").exists()


@pytest.mark.parametrize("case", ["llama", "gemma3_text", "gpt2", "qwen3_moe"])
@pytest.mark.parametrize("pack", [False, True])
def test_a_sharded_bfloat16_checkpoint_computes_as_its_widened_weights(
    tmp_path: Path, case: str, pack: bool
) -> None:
    folder = onnx_models.build(tmp_path / "hf", case, "bfloat16", "30KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    model = onnx_runs.load(folder)
    convert(folder, tmp_path / "onnx", to="onnx", pack=pack, max_shard_nbytes=40_000)
    assert difference(Run(tmp_path / "onnx"), model, padded=True) <= TOLERANCE
    assert difference(Run(tmp_path / "onnx", optimized=False), model) <= TOLERANCE
    if not pack:
        assert difference(Run(tmp_path / "onnx"), onnx_runs.load(tmp_path / "onnx")) <= TOLERANCE
    convert(folder, tmp_path / "wide", to="onnx", dtype="float32")
    assert difference(Run(tmp_path / "wide"), model) <= TOLERANCE


@pytest.mark.parametrize("flavor", FLAVORS)
def test_half_precision_is_near(tmp_path: Path, flavor: str) -> None:
    folder = onnx_models.build(tmp_path / "hf", "qwen3_moe")
    convert(folder, tmp_path / "onnx", to="onnx", dtype="float16", flavor=flavor)
    assert TOLERANCE < difference(Run(tmp_path / "onnx"), onnx_runs.load(folder)) < 0.05


def test_a_nemo_checkpoint_and_a_graph_in_place_compute_the_same(
    hf: Callable[[str], tuple[Path, Any]], tmp_path: Path
) -> None:
    folder, model = hf("gemma2")
    convert(folder, tmp_path / "nemo", to="nemo2", tensor_parallel_size=2)
    convert(tmp_path / "nemo", tmp_path / "onnx", to="onnx")
    assert difference(Run(tmp_path / "onnx"), model, padded=True) <= TOLERANCE
    shutil.copytree(folder, tmp_path / "in-place")
    add_graph(tmp_path / "in-place")
    assert difference(Run(tmp_path / "in-place"), model, padded=True) <= TOLERANCE
    assert difference(Run(tmp_path / "in-place"), onnx_runs.load(tmp_path / "in-place")) <= TOLERANCE


def test_another_models_graph_is_noticed(hf: Callable[[str], tuple[Path, Any]], tmp_path: Path) -> None:
    """The judge itself: left padding that a flavour cannot express, and weights of another model."""
    folder, model = hf("llama")
    convert(folder, tmp_path / "genai", to="onnx", flavor="genai")
    assert difference(Run(tmp_path / "genai"), model, padded=True) > FELT
    _, other = hf("llama-linear")
    assert difference(Run(tmp_path / "genai"), other) > FELT


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["BertModel", "BertForMaskedLM", "BertForPreTraining"])
def test_an_encoder_computes_what_transformers_does(tmp_path: Path, name: str, dtype: str) -> None:
    import numpy
    import onnxruntime
    import torch
    import transformers

    config = transformers.BertConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=130,
        max_position_embeddings=40,
        layer_norm_eps=0.02,
    )
    model = getattr(transformers, name)(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    model.to(getattr(torch, dtype)).save_pretrained(tmp_path / "hf")
    model.float().eval()
    convert(tmp_path / "hf", tmp_path / "onnx", to="onnx", verify=True)
    assert not (tmp_path / "onnx" / "genai_config.json").exists()
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "model.onnx"))
    ids = numpy.random.default_rng(0).integers(0, 130, (3, 12))
    mask = numpy.ones_like(ids)
    mask[0, 7:] = mask[1, :2] = 0
    feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids % 2}
    found = session.run(None, feed)
    with torch.no_grad():
        wanted = model(**{key: torch.tensor(value) for key, value in feed.items()})
    outputs = [value.name for value in session.get_outputs()]
    assert set(outputs) == wanted.keys()
    for key, array in zip(outputs, found, strict=True):
        expected = wanted[key].numpy()
        assert numpy.abs(expected).max() > 0.3
        real = mask.astype(bool) if array.ndim == 3 else slice(None)
        assert numpy.abs(array - expected)[real].max() <= TOLERANCE
    with pytest.raises(UsageError, match="flavor 'genai' is for models that generate"):
        convert(tmp_path / "hf", tmp_path / "genai", to="onnx", flavor="genai")


def test_a_graph_in_place_finds_weights_of_other_spellings(
    hf: Callable[[str], tuple[Path, Any]], tmp_path: Path
) -> None:
    """The first GPT-2 files have no prefix."""
    from safetensors.torch import load_file, save_file

    folder, model = hf("gpt2")
    shutil.copytree(folder, tmp_path / "old")
    tensors = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor.clone() for name, tensor in tensors.items()}
    assert bare.keys() != tensors.keys()
    save_file(bare, tmp_path / "old" / "model.safetensors", {"format": "pt"})
    add_graph(tmp_path / "old")
    assert difference(Run(tmp_path / "old"), model, padded=True) <= TOLERANCE


def attending_both_ways(folder: Path, name: str, **config: Any) -> tuple[Any, dict[str, Any]]:
    """(transformers' Llama that attends both ways, its tensors): what embedding models and rerankers are,
    whose config.json and safetensors are put into a folder."""
    import torch
    from safetensors.torch import load_file, save_file

    source = onnx_models.build(folder / "llama", "llama-llama3")
    inner = onnx_runs.load(source).model
    for layer in inner.layers:
        layer.self_attn.is_causal = False
    tensors = load_file(source / "model.safetensors")
    del tensors["lm_head.weight"]
    if name == "LlamaBidirectionalModel":
        tensors = {key.removeprefix("model."): tensor for key, tensor in tensors.items()}
    else:
        tensors["score.weight"] = torch.randn(1, 64, generator=torch.Generator().manual_seed(1))
    shutil.rmtree(folder / "llama")
    told = as_transformers_4(inner.config.to_dict()) | {
        "model_type": "llama_bidirec",
        "architectures": [name],
        "tie_word_embeddings": True,
        **config,
    }
    del told["pretraining_tp"]
    (folder / "config.json").write_text(json.dumps(told))
    save_file(tensors, folder / "model.safetensors")
    return inner, tensors


def states_of(inner: Any, ids: Any, mask: Any) -> Any:
    """The last hidden states where every token sees all real ones."""
    import torch

    unseen = torch.tensor(mask)[:, None, None] == 0
    with torch.no_grad():
        hidden = torch.zeros(2, 1, ids.shape[1], ids.shape[1]).masked_fill(unseen, -torch.inf)
        return inner(torch.tensor(ids), attention_mask=hidden).last_hidden_state


def test_an_embedding_llama_attends_both_ways(tmp_path: Path) -> None:
    import numpy
    import onnxruntime

    (tmp_path / "hf").mkdir()
    inner, _ = attending_both_ways(tmp_path / "hf", "LlamaBidirectionalModel", pooling="avg")
    convert(tmp_path / "hf", tmp_path / "onnx", to="onnx", verify=True)
    assert not (tmp_path / "onnx" / "genai_config.json").exists()
    ids, mask = onnx_runs.text(models.VOCABULARY, padded=True)
    mask[1, 15:] = 0
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "model.onnx"))
    assert [value.name for value in session.get_inputs()] == ["input_ids", "attention_mask"]
    (found,) = session.run(["last_hidden_state"], {"input_ids": ids, "attention_mask": mask})
    wanted = states_of(inner, ids, mask).numpy()
    assert numpy.abs(found - wanted)[mask.astype(bool)].max() <= TOLERANCE


def test_a_reranker_scores_rows(tmp_path: Path) -> None:
    """Pooled as the code that released rerankers bring along does it, padded on either side."""
    import numpy
    import onnxruntime
    import torch

    (tmp_path / "hf").mkdir()
    name = "LlamaBidirectionalForSequenceClassification"
    inner, tensors = attending_both_ways(tmp_path / "hf", name, pooling="avg", temperature=0.25)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    for kind in ("avg", "weighted_avg", "cls", "last"):
        (tmp_path / "hf" / "config.json").write_text(json.dumps({**config, "pooling": kind}))
        convert(tmp_path / "hf", tmp_path / kind, to="onnx")
        session = onnxruntime.InferenceSession(str(tmp_path / kind / "model.onnx"))
        for left in (True, False):
            ids, mask = onnx_runs.text(models.VOCABULARY, padded=left)
            mask[1, 15:] = mask[1, 15:] * left
            (found,) = session.run(["logits"], {"input_ids": ids, "attention_mask": mask})
            given = torch.tensor(mask)
            states = states_of(inner, ids, mask).masked_fill(given[..., None] == 0, 0)
            last = torch.tensor([-1, -1]) if left else given.sum(1) - 1
            pooled = {
                "avg": states.sum(1) / given.sum(1)[:, None],
                "weighted_avg": states.sum(1),
                "cls": states[:, 0],
                "last": states[torch.arange(2), last],
            }[kind]
            wanted = (pooled @ tensors["score.weight"].T / 0.25).numpy()
            assert numpy.abs(wanted).max() > 1
            assert numpy.abs(found - wanted).max() <= TOLERANCE * numpy.abs(wanted).max()
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**config, "pooling": "colbert"}))
    with pytest.raises(
        UnsupportedConfig, match="pooling='colbert' has no ONNX graph, only avg, weighted_avg"
    ):
        convert(tmp_path / "hf", tmp_path / "other", to="onnx")
