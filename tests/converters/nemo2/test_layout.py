"""The layout in context/: what NeMo wrote stays byte for byte, but for what says the layout."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from nemoconv.converters.nemo2.context import Sizes, build_context, read_context
from nemoconv.converters.nemo2.layout import layout_of, settings, with_settings, with_yaml_settings
from nemoconv.errors import CorruptCheckpoint
from nemoconv.formats.text.fiddle import Symbol
from nemoconv.stores.files import SourceDir
from nemoconv.tensors.layout import Layout

REAL = Path(__file__).parents[3] / "fixtures" / "nemo2"
MODEL = Symbol("nemo.collections.llm.gpt.model.llama", "LlamaModel")
CONFIG = Symbol("nemo.collections.llm.gpt.model.llama", "LlamaConfig")
LAYOUTS = [
    Layout(),
    Layout(2),
    Layout(2, 2, virtual_pipeline_parallel_size=2),
    Layout(4, 2, 2, expert_tensor_parallel_size=1),
    Layout(1, 2, num_layers_in_first_pipeline_stage=1),
    Layout(1, 2, account_for_embedding_in_pipeline_split=True, account_for_loss_in_pipeline_split=True),
    Layout(1, 2, stages=(1, 3)),
    Layout(1, 2, virtual_pipeline_parallel_size=2, stages=(0, 2, 1, 1)),
]


def change(folder: Path, target: Path, layout: Layout) -> Path:
    """Write a context with another layout beside nothing."""
    directory = SourceDir(folder)
    said = settings(layout, 4, read_context(directory))
    (target / "context").mkdir(parents=True)
    for name, write in (("io.json", None), ("model.yaml", with_yaml_settings)):
        data = (folder / "context" / name).read_bytes()
        new = write(data, name, said) if write else with_settings(data, name, said, said, layout.world_size)
        (target / "context" / name).write_bytes(new)
    return target


def context_of(folder: Path):
    return read_context(SourceDir(folder))


@pytest.mark.parametrize(("name", "layout"), [("nemo_tp1pp1", Layout()), ("nemo_tp2pp1", Layout(2))])
def test_the_same_layout_changes_no_byte(tmp_path, name, layout):
    assert layout_of(context_of(REAL / name)) == layout
    new = change(REAL / name, tmp_path / "new", layout)
    for file in ("io.json", "model.yaml"):
        assert (new / "context" / file).read_bytes() == (REAL / name / "context" / file).read_bytes()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", ["nemo_tp1pp1", "nemo_tp2pp1"])
def test_a_layout_is_written_and_read(tmp_path, name, layout):
    before = context_of(REAL / name)
    after = context_of(change(REAL / name, tmp_path / "new", layout))
    assert layout_of(after) == layout
    changed = {key for key in before.yaml_fields if before.yaml_fields[key] != after.yaml_fields[key]}
    for key in {key for key in before.fields if before.fields[key] != after.fields.get(key)} | changed:
        assert "parallel" in key or "pipeline" in key, key
    assert after.fields.keys() - before.fields.keys() <= {"pipeline_dtype"} | set(settings(layout, 4, before))
    assert {**after.yaml_fields, **after.fields}[
        "pipeline_model_parallel_size"
    ] == layout.pipeline_parallel_size
    if layout.pipeline_parallel_size > 1:
        assert after.fields["pipeline_dtype"] == Symbol("torch", "bfloat16")
    again = change(tmp_path / "new", tmp_path / "again", layout)
    for file in ("io.json", "model.yaml"):  # nothing more to change
        assert (again / "context" / file).read_bytes() == (tmp_path / "new/context" / file).read_bytes()


def test_both_places_of_the_sizes_change(tmp_path):
    new = change(REAL / "nemo_tp2pp1", tmp_path / "new", Layout(4, 2))
    text = (new / "context" / "io.json").read_text()
    document = json.loads(text)
    strategy = dict(document["objects"]["megatron_strategy_1"]["items"])
    config = dict(document["objects"]["llama_config_1"]["items"])
    for name, size in (("tensor_model_parallel_size", 4), ("pipeline_model_parallel_size", 2)):
        for node in (strategy, config):
            assert node[f"Attr(name={name!r})"]["value"] == size
    assert dict(document["objects"]["trainer_1"]["items"])["Attr(name='devices')"]["value"] == 8
    written = yaml.safe_load((new / "context" / "model.yaml").read_bytes())["config"]
    assert (written["tensor_model_parallel_size"], written["pipeline_model_parallel_size"]) == (4, 2)


def test_sequence_parallel_needs_tensor_parallel(tmp_path):
    context = context_of(REAL / "nemo_tp2pp1")
    context.fields["sequence_parallel"] = True
    assert settings(Layout(1), 4, context)["sequence_parallel"] is False
    assert "sequence_parallel" not in settings(Layout(2), 4, context)


def test_new_settings_in_a_minimal_context(tmp_path):
    """One that holds only what we write: arguments that were never said are added, with their names."""
    fields = {"num_layers": 4, "params_dtype": Symbol("torch", "bfloat16")}
    (tmp_path / "old" / "context").mkdir(parents=True)
    for name, data in build_context(MODEL, CONFIG, fields).items():
        (tmp_path / "old" / "context" / name).write_bytes(data)
    layout = Layout(2, 2, 4, stages=(1, 3))
    new = change(tmp_path / "old", tmp_path / "new", layout)
    context = context_of(new)
    assert layout_of(context) == layout
    assert context.fields["pipeline_model_parallel_layout"] == "Et|tttL"
    assert "num_layers_in_first_pipeline_stage" not in context.fields
    assert list(context.yaml_fields) == sorted(context.yaml_fields)


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ([["embedding", "decoder"], ["decoder"] * 3 + ["loss"]], Layout(1, 2, stages=(1, 3))),
        ("Et|tttL", Layout(1, 2, stages=(1, 3))),
        ("nonsense", Layout(1, 2)),
    ],
)
def test_both_ways_of_saying_stages_are_read(stages, expected):
    context = context_of(REAL / "nemo_tp1pp1")
    fields = {**context.fields, "pipeline_model_parallel_layout": stages}
    sizes = Sizes(tensor=1, pipeline=2)
    assert layout_of(dataclasses.replace(context, fields=fields, trainer=sizes)) == expected


def test_a_context_without_a_config_is_refused():
    with pytest.raises(CorruptCheckpoint, match="x.yaml: no config"):
        with_yaml_settings(b"a: 1", "x.yaml", {})
    broken = {"root": {"type": "ref", "key": "a"}, "objects": {}}
    with pytest.raises(CorruptCheckpoint, match="io.json"):
        with_settings(json.dumps(broken).encode(), "io.json", {}, {}, 1)
