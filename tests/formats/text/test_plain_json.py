from __future__ import annotations

import json
import time

import pytest

from nemoconv.errors import CorruptCheckpoint, NemoconvError, UnsafeCheckpoint
from nemoconv.formats.text import plain_json


def refused(data: bytes, **limits: int) -> str:
    with pytest.raises(NemoconvError) as caught:
        plain_json.loads(data, "config.json", **limits)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "value",
    [{}, [], None, True, 0, -1.5, "", "é☃\U0001f600", {"a": [1, {"b": None}]}, 10**400, "\u2028"],
)
def test_a_value_survives(value: object) -> None:
    assert plain_json.loads(plain_json.dumps(value), "x") == value


def test_dumps_looks_as_hugging_face_writes_it() -> None:
    assert plain_json.dumps({"b": 1, "a": ["é"]}) == ('{\n  "b": 1,\n  "a": [\n    "é"\n  ]\n}\n'.encode())
    assert plain_json.dumps({"b": 1, "a": 2}, sort_keys=True) == b'{\n  "a": 2,\n  "b": 1\n}\n'


def test_an_unpaired_surrogate_is_escaped_rather_than_lost() -> None:
    value = plain_json.loads(rb'{"a": "\ud800"}', "x")
    assert plain_json.loads(plain_json.dumps(value), "x") == value


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "config.json: the key 'c' appears twice"),
        (rb'{"a": 1, "\u0061": 2}', "config.json: the key 'a' appears twice"),
        (b'{"rope_theta": NaN}', "config.json: holds NaN, which JSON does not have"),
        (b"[-Infinity]", "config.json: holds -Infinity, which JSON does not have"),
        (b"[1e999]", "config.json: the number 1e999 is out of range"),
        (b"[1" + b"0" * 5000 + b"]", "config.json: holds an integer of thousands of digits"),
        (b'{"a": 1,}', "config.json: not JSON: "),
        (b"", "config.json: not JSON: Expecting value at line 1, column 1"),
        (b"{} {}", "config.json: not JSON: Extra data at line 1, column 4"),
        (b"\xff\xfe{\x00}\x00", "config.json: not UTF-8 text (byte 0)"),
        (
            b"\xef\xbb\xbf{}",
            "config.json: starts with a byte order mark, which JSON does not allow",
        ),
        (b'["' + b"\\", "config.json: not JSON: "),
    ],
)
def test_what_is_refused_and_how(data: bytes, message: str) -> None:
    assert refused(data).startswith(message)


def test_deep_nesting_is_refused_without_recursion() -> None:
    text = refused(b"[" * 200_000 + b"]" * 200_000)
    assert text == "config.json: nested deeper than 64 levels"
    assert plain_json.loads(b"[" * 64 + b"]" * 64, "x") is not None
    assert refused(b"[" * 65 + b"]" * 65) == text
    assert refused(b'{"a":' * 65 + b"1" + b"}" * 65) == text


def test_brackets_inside_strings_do_not_count() -> None:
    value = ["[" * 500, '"[' * 500, "\\" * 3 + "[" * 99, "}{" * 99]
    assert plain_json.loads(json.dumps(value).encode(), "x") == value


def test_the_size_limit_comes_first() -> None:
    with pytest.raises(UnsafeCheckpoint, match="11 bytes, more than the 10 allowed"):
        plain_json.loads(b"x" * 11, "config.json", max_bytes=10)


def test_a_long_string_is_read_in_linear_time() -> None:
    started = time.monotonic()
    plain_json.loads(b'["' + b"a\\n[" * 2_000_000 + b'"]', "x")
    refused(b'["' + b"a\\n[" * 2_000_000)
    assert time.monotonic() - started < 20


def test_nonfinite_numbers_only_on_request() -> None:
    got = plain_json.loads(b"[Infinity, 1e999]", "io.json", allow_nonfinite=True)
    assert got == [float("inf"), float("inf")]


def test_loads_object() -> None:
    assert plain_json.loads_object(b"{}", "x") == {}
    with pytest.raises(CorruptCheckpoint, match=r"config\.json: holds a list, not an object"):
        plain_json.loads_object(b"[]", "config.json")
