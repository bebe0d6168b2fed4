"""Checkpoints as people have them: converted bit for bit with a word on what was left, or refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import found
import numpy
import pytest
import tiny
from click.testing import CliRunner

from nemoconv.cli import main

NAMES = [situation.name for situation in found.SITUATIONS]


def test_every_situation_has_a_name_of_its_own() -> None:
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("situation", found.SITUATIONS, ids=NAMES)
def test_a_situation(situation: found.Situation, tmp_path: Path) -> None:
    source, out, back = tmp_path / "source", tmp_path / "out", tmp_path / "back"
    expected = found.build(situation, source)
    places = {"SRC": str(source), "OUT": str(out)}
    result = CliRunner().invoke(main, [places.get(word, word) for word in situation.command])
    printed = result.output + result.stderr
    for expression in situation.says:
        assert re.search(expression, printed), printed
    for expression in situation.says_not:
        assert not re.search(expression, printed), printed
    if situation.refused:
        assert result.exit_code in situation.refused, printed
        assert len(result.stderr.splitlines()) == 1
        assert [path.name for path in tmp_path.iterdir()] == ["source"]
        return
    assert result.exit_code == 0, printed
    result = CliRunner().invoke(main, ["nemo2hf", str(out), str(back), "-q"])
    assert result.exit_code == 0, result.output
    held = tiny.load(back)
    assert held.keys() == expected.keys()
    for name, array in expected.items():
        assert numpy.array_equal(held[name], array), name
    config = json.loads((back / "config.json").read_text())
    assert {key: config[key] for key in situation.config or {}} == (situation.config or {})
