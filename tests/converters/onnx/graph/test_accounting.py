"""A config field that the graph of an architecture does not read is refused by name, and not left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemoconv import mappings
from nemoconv.converters.onnx.graph.architectures import Reading
from nemoconv.converters.run.convert import convert
from nemoconv.errors import UnsupportedConfig
from nemoconv.mappings import described, samples
from nemoconv.mappings.architecture import Architecture
from nemoconv.mappings.hf.fields import Field, Nullable
from nemoconv.mappings.llama_like import llama_like

LLAMA = samples.LLAMA
#: what no graph here multiplies by
FACTOR = Field("logit_scale", "logit_scale", 1.0, kind=float)


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> Architecture:
    """An architecture that multiplies logits by a factor of its config, registered as a third party's."""
    made = llama_like("scaled", "ScaledForCausalLM", config=(FACTOR,))
    known = {**mappings.entries("mappings"), "scaled": _Entry(made)}
    monkeypatch.setattr(mappings, "entries", lambda _: known)
    return made


class _Entry:
    name, origin, target = "scaled", "toy-package", "toy:SCALED"

    def __init__(self, made: Architecture) -> None:
        self.load = lambda: made


def config(**changes: Any) -> dict[str, Any]:
    return {**LLAMA, "model_type": "scaled", "architectures": ["ScaledForCausalLM"], **changes}


def test_a_field_that_no_graph_reads_is_refused(scaled: Architecture, tmp_path: Path) -> None:
    samples.build(tmp_path / "hf", config(logit_scale=0.25))
    with pytest.raises(UnsupportedConfig, match="'scaled' leaves out what the config says: logit_scale=0.25"):
        convert(tmp_path / "hf", tmp_path / "onnx", to="onnx")
    assert not (tmp_path / "onnx").exists()


def test_a_default_is_said_as_well(scaled: Architecture, tmp_path: Path) -> None:
    """Nobody knows that 1.0 changes nothing, until the graph is taught what it means."""
    samples.build(tmp_path / "hf", config())
    with pytest.raises(UnsupportedConfig, match="logit_scale=1.0"):
        convert(tmp_path / "hf", tmp_path / "onnx", to="onnx")


def test_what_is_not_there_says_nothing(
    scaled: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nullable = replace(scaled, config=(*scaled.config, Nullable("logit_cap", "logit_cap", kind=float)))
    nullable = replace(nullable, config=tuple(rule for rule in nullable.config if rule != FACTOR))
    monkeypatch.setitem(mappings.entries("mappings"), "scaled", _Entry(nullable))  # type: ignore[arg-type]
    samples.build(tmp_path / "hf", config())
    convert(tmp_path / "hf", tmp_path / "onnx", to="onnx")
    samples.build(tmp_path / "capped", config(logit_cap=30.0))
    with pytest.raises(UnsupportedConfig, match=r"logit_cap=30\.0"):
        convert(tmp_path / "capped", tmp_path / "no", to="onnx")


def test_reading_knows_what_was_read() -> None:
    reading = Reading({"a": 1, "b": 2})
    assert (reading["a"], reading.get("c"), list(reading), len(reading)) == (1, None, ["a", "b"], 2)
    assert reading.read == {"a", "c"}


def test_llama_is_whole() -> None:
    llama = described("llama")
    assert llama is not None
    assert llama.follows
