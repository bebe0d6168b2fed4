"""Errors: one line each, whatever a checkpoint puts into them, and one exit code a class."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemoconv import errors
from nemoconv.errors import NemoconvError, printable, some


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 漢", "plain é 漢"),
        ("a\nb\r\n", "a\\nb\\r\\n"),
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("tab\t", "tab\\t"),
        ("\0", "\\x00"),
        ("\x7f\x9b", "\\x7f\\x9b"),
        ("evil\u202etxt.exe", "evil\\u202etxt.exe"),
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("line\u2028para\u2029", "line\\u2028para\\u2029"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text, shown):
    assert printable(text) == shown
    error = NemoconvError(text, hint=text)
    assert str(error) == f"{shown}; {shown}"
    assert error.args == (f"{shown}; {shown}",)


@given(st.text(st.characters(exclude_categories=())), st.integers(4, 300))
def test_any_text_is_one_printable_line(text, limit):
    shown = printable(text, limit)
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1
    assert len(shown) <= limit
    shown.encode()


def test_long_text_is_cut():
    assert printable("x" * 2000) == "x" * 2000
    assert printable("x" * 2001) == "x" * 1997 + "..."


def test_some_names():
    assert some([]) == ""
    assert some(["a", "b"]) == "a, b"
    assert some(range(12)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"
    assert some(["a", "b", "c"], 1) == "a and 2 more"
    assert some({"a": 1}.keys()) == "a"


@pytest.mark.parametrize(
    ("name", "code", "parent"),
    [
        ("NemoconvError", 70, Exception),
        ("UsageError", 2, ValueError),
        ("CorruptCheckpoint", 3, ValueError),
        ("UnsafeCheckpoint", 4, ValueError),
        ("UnsupportedError", 5, ValueError),
        ("UnsupportedFormat", 5, ValueError),
        ("UnsupportedArchitecture", 5, ValueError),
        ("UnsupportedConfig", 5, ValueError),
        ("MappingError", 5, ValueError),
        ("LayoutError", 5, ValueError),
        ("OutputError", 6, OSError),
        ("Unreachable", 7, OSError),
    ],
)
def test_classes(name, code, parent):
    kind = getattr(errors, name)
    error = kind("what is wrong", hint="what to do")
    assert isinstance(error, NemoconvError)
    assert isinstance(error, parent)
    assert error.exit_code == code
    assert error.message == "what is wrong"
    assert error.hint == "what to do"
    assert str(error) == "what is wrong; what to do"
    assert str(kind("alone")) == "alone"
    assert kind("alone").hint == ""


def test_every_class_is_in_this_test():
    classes = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert classes == {row[0] for row in test_classes.pytestmark[0].args[1]}
