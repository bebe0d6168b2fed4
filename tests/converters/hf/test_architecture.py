"""--architecture: the user's word for what a model with code of its own is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import deserialize

from nemoconv.converters.run.convert import convert
from nemoconv.errors import UnsupportedArchitecture, UnsupportedConfig, UsageError
from nemoconv.mappings import samples

OWN = {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}


def own(folder: Path, **changes: Any) -> Path:
    """A Llama that says it is something else."""
    samples.build(folder)
    config = json.loads((folder / "config.json").read_text())
    told = {**config, "model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": OWN, **changes}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in told.items() if v is not None}))
    return folder


def test_it_is_taken_for_what_the_user_says_and_that_is_recorded(tmp_path: Path) -> None:
    source = own(tmp_path / "own")
    with pytest.raises(UnsupportedArchitecture, match="no mapping table for the architecture 'own'"):
        convert(source, tmp_path / "out", to="nemo2")
    report = convert(source, tmp_path / "out", to="nemo2", architecture="llama", verify=True)
    said = "config.json says model_type 'own' with code of its own, which is not run: on request it is taken for 'llama'"
    assert said in report.notes
    assert said in json.loads((tmp_path / "out" / "nemoconv_manifest.json").read_text())["source_notes"]
    convert(tmp_path / "out", tmp_path / "back", to="hf")
    written = json.loads((tmp_path / "back" / "config.json").read_text())
    assert (written["model_type"], written["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert "auto_map" not in written
    files = [folder / "model.safetensors" for folder in (source, tmp_path / "back")]
    first, second = (dict(deserialize(file.read_bytes())) for file in files)
    assert first == second


def test_a_model_type_without_a_table_is_taken_too(tmp_path: Path) -> None:
    source = own(tmp_path / "own", model_type="internlm3", auto_map=None)
    report = convert(source, tmp_path / "out", to="nemo2", architecture="llama")
    assert "config.json says model_type 'internlm3': on request it is taken for 'llama'" in report.notes


def test_its_keys_are_judged_strictly(tmp_path: Path) -> None:
    source = own(tmp_path / "own", never_read=1)
    with pytest.raises(UnsupportedConfig, match="never_read"):
        convert(source, tmp_path / "out", to="nemo2", architecture="llama")
    report = convert(source, tmp_path / "out", to="nemo2", architecture="llama", allow_ignored=["never_read"])
    assert report.ignored_keys == ["auto_map", "never_read"]


def test_what_config_json_says_clearly_is_not_overruled(tmp_path: Path) -> None:
    samples.build(tmp_path / "llama")
    with pytest.raises(UsageError, match="says model_type 'llama', which has a table"):
        convert(tmp_path / "llama", tmp_path / "out", to="nemo2", architecture="mistral")
    with pytest.raises(UnsupportedArchitecture, match="frob"):
        convert(own(tmp_path / "own"), tmp_path / "out", to="nemo2", architecture="frob")
    convert(tmp_path / "llama", tmp_path / "nemo", to="nemo2")
    with pytest.raises(UsageError, match="architecture"):
        convert(tmp_path / "nemo", tmp_path / "out", to="hf", architecture="llama")


def test_what_a_rule_refuses_comes_before_code_of_its_own(tmp_path: Path) -> None:
    source = own(tmp_path / "own", model_type="llama", architectures=["LlamaForCausalLM"], hidden_act="relu")
    with pytest.raises(UnsupportedConfig, match="hidden_act"):
        convert(source, tmp_path / "out", to="nemo2")
