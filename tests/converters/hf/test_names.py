"""Names of tensors as people's files have them: what they are taken for, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import load_file, save_file

from nemoconv.converters.registry import open_checkpoint
from nemoconv.converters.run.convert import convert
from nemoconv.errors import MappingError, UnsupportedArchitecture

from ...golden import builder, configs

Arrays = dict[str, numpy.ndarray[Any, Any]]


def usual(folder: Path, case: str, **changes: Any) -> Arrays:
    """A tiny model of random numbers, in float32, as its class writes it."""
    config = {**configs.config(case), "torch_dtype": "float32", **changes}
    builder.build(folder, config)
    return load_file(folder / "model.safetensors")


def put(folder: Path, source: Path, arrays: Mapping[str, Any], **changes: Any) -> Path:
    """A directory with the config of ``source`` and these tensors."""
    folder.mkdir()
    config = {**json.loads((source / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        {name: numpy.ascontiguousarray(array) for name, array in arrays.items()}, folder / "model.safetensors"
    )
    return folder


def back(source: Path, folder: Path) -> tuple[Arrays, list[str]]:
    """What comes back from NeMo 2, and the notes of the way there."""
    report = convert(source, folder / "nemo", to="nemo2")
    convert(folder / "nemo", folder / "back", to="hf")
    return load_file(folder / "back" / "model.safetensors"), list(report.notes)


def assert_same(found: Arrays, expected: Arrays) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].tobytes() == array.tobytes(), name  # NaNs among them


@pytest.mark.parametrize(
    "name",
    [
        lambda name: name.removeprefix("model."),
        lambda name: "language_model." + name,
        lambda name: name.replace("model.", "model.language_model.", 1) if name != "lm_head.weight" else name,
        lambda name: name.replace("model.", "transformer.", 1) if name != "lm_head.weight" else name,
    ],
    ids=["no prefix", "language_model", "model.language_model", "another root"],
)
@pytest.mark.parametrize("case", ["llama", "qwen3", "mixtral", "deepseek_v3, no mtp"])
def test_a_text_model_under_other_names(case: str, name: Callable[[str], str], tmp_path: Path) -> None:
    arrays = usual(tmp_path / "usual", case)
    other = put(tmp_path / "other", tmp_path / "usual", {name(n): array for n, array in arrays.items()})
    found, notes = back(other, tmp_path)
    assert_same(found, arrays)
    assert [note for note in notes if "named otherwise than usual" in note]
    with open_checkpoint(other) as opened:
        assert set(opened.plain()) == {name(n) for n in arrays}  # without a table the source's own names


def stacked(arrays: Arrays, gate: str, up: str, down: str) -> Arrays:
    """The experts of a layer in one tensor, gate over up."""
    found = {name: array for name, array in arrays.items() if ".experts." not in name}
    for place in {name.partition(".experts.")[0] + ".experts." for name in arrays if ".experts." in name}:
        count = len([name for name in arrays if name.startswith(place) and name.endswith(down)])
        rows = [numpy.concatenate([arrays[f"{place}{e}.{end}"] for end in (gate, up)]) for e in range(count)]
        found[place + "gate_up_proj"] = numpy.stack(rows)
        found[place + "down_proj"] = numpy.stack([arrays[f"{place}{e}.{down}"] for e in range(count)])
    return found


@pytest.mark.parametrize(
    ("case", "ends"),
    [
        ("qwen3_moe", ("gate_proj.weight", "up_proj.weight", "down_proj.weight")),
        ("qwen2_moe", ("gate_proj.weight", "up_proj.weight", "down_proj.weight")),
        ("glm4_moe, no mtp", ("gate_proj.weight", "up_proj.weight", "down_proj.weight")),
        ("deepseek_v2", ("gate_proj.weight", "up_proj.weight", "down_proj.weight")),
        ("mixtral", ("w1.weight", "w3.weight", "w2.weight")),
    ],
)
def test_experts_of_a_layer_in_one_tensor(case: str, ends: tuple[str, str, str], tmp_path: Path) -> None:
    arrays = usual(tmp_path / "usual", case)
    stack = stacked(arrays, *ends)
    memory = {name.replace(".block_sparse_moe.", ".mlp."): array for name, array in stack.items()}
    found, notes = back(put(tmp_path / "other", tmp_path / "usual", memory), tmp_path)
    assert_same(found, arrays)
    assert [note for note in notes if "hold the experts of a layer" in note]


def test_a_stack_with_an_odd_number_of_rows_is_refused(tmp_path: Path) -> None:
    ends = ("gate_proj.weight", "up_proj.weight", "down_proj.weight")
    stack = stacked(usual(tmp_path / "usual", "qwen3_moe"), *ends)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    other = put(tmp_path / "other", tmp_path / "usual", {**stack, name: stack[name][:, :-1]})
    with pytest.raises(MappingError, match="gate_up_proj"):
        convert(other, tmp_path / "nemo", to="nemo2")


def test_a_tied_model_that_kept_the_output_layers_name(tmp_path: Path) -> None:
    arrays = usual(tmp_path / "usual", "llama, tied")
    names = {"model.embed_tokens.weight": "lm_head.weight"}
    other = put(tmp_path / "other", tmp_path / "usual", {names.get(n, n): a for n, a in arrays.items()})
    found, notes = back(other, tmp_path)
    assert_same(found, arrays)
    assert [note for note in notes if "lm_head.weight for model.embed_tokens.weight" in note]


def test_an_untied_model_without_its_embedding_is_not_completed(tmp_path: Path) -> None:
    arrays = usual(tmp_path / "usual", "llama")
    other = put(
        tmp_path / "other", tmp_path / "usual", {n: a for n, a in arrays.items() if "embed_tokens" not in n}
    )
    with pytest.raises(MappingError, match=r"missing: model\.embed_tokens\.weight"):
        convert(other, tmp_path / "nemo", to="nemo2")


def test_a_base_class_is_completed_only_where_it_is_tied(tmp_path: Path) -> None:
    arrays = usual(tmp_path / "usual", "mistral")
    body = {n.removeprefix("model."): a for n, a in arrays.items() if n != "lm_head.weight"}
    tied = put(
        tmp_path / "tied", tmp_path / "usual", body, architectures=["MistralModel"], tie_word_embeddings=True
    )
    found, _ = back(tied, tmp_path)
    assert_same(found, {n: a for n, a in arrays.items() if n != "lm_head.weight"})
    untied = put(tmp_path / "untied", tmp_path / "usual", body, architectures=["MistralModel"])
    with pytest.raises(UnsupportedArchitecture, match="is a MistralModel, which has no output layer"):
        convert(untied, tmp_path / "nemo2", to="nemo2")


def test_two_tensors_for_one_name_are_refused(tmp_path: Path) -> None:
    arrays = usual(tmp_path / "usual", "llama")
    twice = {**arrays, "norm.weight": numpy.zeros_like(arrays["model.norm.weight"])}
    with pytest.raises(MappingError, match=r"are both model\.norm\.weight"):
        convert(put(tmp_path / "other", tmp_path / "usual", twice), tmp_path / "nemo", to="nemo2")
    with open_checkpoint(tmp_path / "other") as opened:  # they can be looked at
        assert "norm.weight" in opened.keys()  # noqa: SIM118 - not a mapping


def test_a_bert_that_names_fewer_heads_than_it_has_is_taken_whole(tmp_path: Path) -> None:
    arrays = usual(tmp_path / "usual", "bert:BertForPreTraining")
    old = {n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): a
           for n, a in arrays.items()}  # fmt: skip
    other = put(tmp_path / "other", tmp_path / "usual", old, architectures=["BertForMaskedLM"])
    found, notes = back(other, tmp_path)
    assert_same(found, arrays)
    assert [note for note in notes if "architectures is taken to be ['BertForPreTraining']" in note]
    written = json.loads((tmp_path / "back" / "config.json").read_text())
    assert written["architectures"] == ["BertForPreTraining"]


def test_a_bert_that_holds_what_it_names_stays_what_it_is(tmp_path: Path) -> None:
    arrays = usual(tmp_path / "usual", "bert:BertForMaskedLM")
    found, notes = back(tmp_path / "usual", tmp_path)
    assert_same(found, arrays)
    assert not [note for note in notes if "architectures" in note]
