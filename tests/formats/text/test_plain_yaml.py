from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from nemoconv.errors import CorruptCheckpoint, NemoconvError, UnsafeCheckpoint
from nemoconv.formats.text import plain_yaml

REAL = sorted((Path(__file__).parents[3] / "fixtures" / "nemo2").glob("*/context/model.yaml"))


def refused(data: bytes) -> str:
    with pytest.raises(NemoconvError) as caught:
        plain_yaml.loads(data, "model.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.parts[-3])
def test_what_nemo_wrote_reads_as_with_pyyaml(path: Path) -> None:
    value = plain_yaml.loads(path.read_bytes(), str(path))
    assert value == yaml.safe_load(path.read_bytes())
    assert plain_yaml.loads(plain_yaml.dumps(value), "again") == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("~", None),
        ("[1, 0x10, 1_000, 1:30]", [1, 16, 1000, 90]),
        ("[yes, No, true]", [True, False, True]),
        ("[1.5, 1.0e-05, 1e-5, .inf]", [1.5, 1e-5, 1e-5, float("inf")]),
        ('["1e-5", \'yes\', "0x10"]', ["1e-5", "yes", "0x10"]),
        ("2001-01-01", "2001-01-01"),
        ("!!str 1", "1"),
        ("a: ${oc.env:HOME}\nb: ${.a}", {"a": "${oc.env:HOME}", "b": "${.a}"}),
        ("a: &x [1, 2]\nb: *x", {"a": [1, 2], "b": [1, 2]}),
        (
            "d: &d {a: 1, b: 2}\ne:\n  <<: *d\n  b: 3",
            {"d": {"a": 1, "b": 2}, "e": {"a": 1, "b": 3}},
        ),
        ("e:\n  <<: [{a: 1}, {a: 2, b: 2}]", {"e": {"a": 1, "b": 2}}),
        ("1: a\nnull: b", {1: "a", None: "b"}),
        ("a: |\n  x\n  y\n", {"a": "x\ny\n"}),
    ],
)
def test_what_is_read(text: str, value: object) -> None:
    assert plain_yaml.loads(text.encode(), "x") == value


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            b'a: !!python/object/apply:os.system ["ls"]',
            "model.yaml: line 1: the tag 'tag:yaml.org,2002:python/object/apply:os.system' is not allowed",
        ),
        (b"a: 1\nb: !x {}", "model.yaml: line 2: the tag '!x' is not allowed"),
        (
            b"%TAG ! tag:yaml.org,2002:python/\n---\n!object:a.b {}",
            "model.yaml: line 3: the tag 'tag:yaml.org,2002:python/object:a.b' is not allowed",
        ),
        (b"a: 1\nb: {c: 1, c: 2}", "model.yaml: line 2: the key 'c' appears twice"),
        (b"1: a\n1.0: b", "model.yaml: line 2: the key 1.0 appears twice"),
        (b"? [a]\n: 1", "model.yaml: line 1: a key that is not plain text"),
        (b"a: &a [x]\n*a : 1", "model.yaml: line 2: a key that is not plain text"),
        (b"a: &a [*a]", "model.yaml: line 1: the alias 'a' stands for nothing complete"),
        (b"a: *b", "model.yaml: line 1: the alias 'b' stands for nothing complete"),
        (b"<<: 1", "model.yaml: line 1: '<<' with what is not a mapping"),
        (b"a: !!int x", "model.yaml: line 1: 'x' is not of type int"),
        (b"a: " + b"9" * 5000, "model.yaml: line 1: '9999"),
        (b"a: [", "model.yaml: not YAML: "),
        (b"a: \x00", "model.yaml: not YAML: "),
        (b"\xff", "model.yaml: not UTF-8 text (byte 0)"),
        (b"--- a\n--- b", "model.yaml: holds 2 documents"),
    ],
)
def test_what_is_refused_and_how(data: bytes, message: str) -> None:
    assert refused(data).startswith(message)


@pytest.mark.parametrize("unit", [b"[", b"{a: ", b"- ", b"? "])
def test_deep_nesting_is_refused_without_recursion(unit: bytes) -> None:
    assert "model.yaml: " in refused(unit * 200_000)
    assert plain_yaml.loads(b"[" * 64 + b"]" * 64, "x") is not None
    assert refused(b"[" * 65 + b"]" * 65) == "model.yaml: nested deeper than 64 levels"


def test_an_alias_bomb_is_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    text = refused("\n".join(lines).encode())
    assert text == "model.yaml: its aliases stand for more than 1,000 values"


def test_many_values_and_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsafeCheckpoint, match="11 bytes, more than the 10 allowed"):
        plain_yaml.loads(b"x" * 11, "model.yaml", max_bytes=10)
    monkeypatch.setattr(plain_yaml, "MAX_VALUES", 10)
    assert refused(b"[" + b"1, " * 20 + b"]") == "model.yaml: more than 10 values"


def test_dumps_writes_no_aliases() -> None:
    shared = [1]
    assert plain_yaml.dumps({"b": shared, "a": shared}) == b"b:\n- 1\na:\n- 1\n"
    assert plain_yaml.dumps({"x": 1e-5, "y": None, "z": "yes"}) == b"x: 1.0e-05\ny: null\nz: 'yes'\n"


def test_loads_mapping() -> None:
    assert plain_yaml.loads_mapping(b"a: 1", "x") == {"a": 1}
    with pytest.raises(CorruptCheckpoint, match=r"model\.yaml: holds a list, not a mapping"):
        plain_yaml.loads_mapping(b"[]", "model.yaml")
