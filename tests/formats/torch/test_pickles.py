"""The restricted unpickler: what pickle writes is read, what no checkpoint needs is refused."""

from __future__ import annotations

import argparse
import collections
import contextlib
import enum
import math
import pickle
import time

import hostile
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemoconv.errors import CorruptCheckpoint, NemoconvError, UnsafeCheckpoint
from nemoconv.formats.torch.pickle_writer import PickleWriter, integer
from nemoconv.formats.torch.pickles import Constant, PickledDict, Stub, check_bounded, loads

KNOWN = {
    ("argparse", "Namespace"): Stub,
    ("collections", "OrderedDict"): PickledDict,
    ("torch", "float32"): Constant("float32"),
    ("known", "pair"): lambda a, b: (a, b),
}


def load(data, **options):
    return loads(data, **{"known": KNOWN, "where": "x.pkl", **options})


CONSTRUCTORS = {"set": set, "bytes": bytes}
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**400), 2**400)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary(max_size=300),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.tuples(inner, inner, inner, inner)
        | st.tuples(inner)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=5)
        | st.sets(st.integers(-9, 9))
    ),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None)
@given(VALUES, st.integers(0, 5))
def test_reads_what_pickle_writes(value, protocol):
    known = {("_codecs", "encode"): lambda text, _: text.encode("latin1")}
    known |= {(m, n): f for m in ("__builtin__", "builtins") for n, f in CONSTRUCTORS.items()}
    assert load(pickle.dumps(value, protocol), known=known) == value


@pytest.mark.parametrize("protocol", range(6))
def test_objects_become_stubs(protocol):
    known = {**KNOWN, ("copy_reg", "_reconstructor"): lambda kind, *_: Stub(kind.kind)}
    known |= {("__builtin__", "object"): Stub}
    got = load(pickle.dumps(argparse.Namespace(a=1, b=[2]), protocol), known=known)
    assert isinstance(got, Stub)
    assert got.kind == ("argparse", "Namespace")
    assert (got.get("a"), got.get("b"), got.get("c")) == (1, [2], None)


def test_ordered_dict_keeps_attributes():
    value = collections.OrderedDict(a=1)
    value._metadata = {"version": 1}
    got = load(pickle.dumps(value, 2))
    assert got == {"a": 1}
    assert got.state == {"_metadata": {"version": 1}}


class Colour(enum.Enum):
    RED = 1


def test_enum_is_a_stub_with_its_value():
    got = load(pickle.dumps(Colour.RED, 4), known={(Colour.__module__, "Colour"): Stub})
    assert got.args == (1,)


def test_python2_strings_and_protocol_0():
    assert load(b"(dp0\nS'a'\np1\nI01\nsVb\nF1.5\nsS'c'\nL7L\ns.") == {"a": True, "b": 1.5, "c": 7}
    assert load(b"\x80\x02U\x02\xff\xfe.") == b"\xff\xfe"


def test_persistent_ids():
    assert load(b"\x80\x02K\x05Q.", persistent_load=lambda key: [key]) == [5]
    with pytest.raises(UnsafeCheckpoint, match="refers to an object outside the pickle"):
        load(b"\x80\x02K\x05Q.")


UNSAFE = "no checkpoint of this kind needs; nothing of it was run"
HOSTILE = {
    "os.system": (
        hostile.call("os", "system"),
        UnsafeCheckpoint,
        f"names os.system, which {UNSAFE}",
    ),
    "exec": (hostile.call("builtins", "exec"), UnsafeCheckpoint, "names builtins.exec,"),
    "getattr": (hostile.call("builtins", "getattr"), UnsafeCheckpoint, "names builtins.getattr,"),
    "import": (hostile.call("importlib", "import_module"), UnsafeCheckpoint, "import_module,"),
    "resolve_name": (hostile.call("pkgutil", "resolve_name"), UnsafeCheckpoint, "resolve_name,"),
    "dotted": (
        *(hostile.stack_global("torch", "serialization.os.system"), UnsafeCheckpoint),
        "names torch.serialization.os.system,",
    ),
    "dotted known": (
        *(hostile.stack_global("argparse", "Namespace.__init__"), UnsafeCheckpoint),
        "names argparse.Namespace.__init__,",
    ),
    "execWrapper": (
        *(hostile.call("torch.jit.unsupported_tensor_ops", "execWrapper"), UnsafeCheckpoint),
        "names torch.jit.unsupported_tensor_ops.execWrapper,",
    ),
    "load_from_bytes": (
        *(hostile.call("torch.storage", "_load_from_bytes"), UnsafeCheckpoint),
        "names torch.storage._load_from_bytes,",
    ),
    "popped call": (hostile.popped_call(), UnsafeCheckpoint, "names os.system,"),
    "INST": (hostile.inst(), UnsafeCheckpoint, "names os.system,"),
    "OBJ": (hostile.obj(), UnsafeCheckpoint, "names os.system,"),
    "NEWOBJ_EX": (hostile.newobj_ex(), UnsafeCheckpoint, "names os.system,"),
    "escapes": (
        *(hostile.call("os\x1b[2J", "system"), UnsafeCheckpoint),
        "names os\\x1b[2J.system,",
    ),
    "call of a constant": (
        *(hostile.call("torch", "float32"), UnsafeCheckpoint),
        "x.pkl: calls what no checkpoint may call (byte 35 of the pickle); nothing of it was run",
    ),
    "call of a string": (b"\x80\x02X\x01\x00\x00\x00a)R.", UnsafeCheckpoint, "calls what no"),
    "call of a stub": (
        *(b"\x80\x02cargparse\nNamespace\n)\x81)R.", UnsafeCheckpoint),
        "calls what no checkpoint may call",
    ),
    "BUILD on a dict": (b"\x80\x02}}b.", UnsafeCheckpoint, "sets attributes of something"),
    "BUILD on a class": (
        *(b"\x80\x02cargparse\nNamespace\n}b.", UnsafeCheckpoint),
        "sets attributes of something",
    ),
    "extension": (b"\x80\x02\x82\x01.", UnsafeCheckpoint, "Python's extension registry (byte 2"),
    "buffer": (b"\x80\x05\x97.", UnsafeCheckpoint, "asks for a buffer outside the pickle"),
    "long integer": (
        *(hostile.long_integer(65), UnsafeCheckpoint),
        "x.pkl: holds an integer of more than 64 bytes (byte 2 of the pickle)",
    ),
    "long text integer": (b"L" + b"9" * 4000 + b"L\n.", CorruptCheckpoint, "or is too long"),
    "huge string": (hostile.huge_string(), CorruptCheckpoint, "x.pkl: the pickle is cut short"),
    "nested key": (
        hostile.nested_tuple_key(300_000),
        CorruptCheckpoint,
        "a dictionary key that no",
    ),
    "list key": (b"\x80\x02}]Ns.", CorruptCheckpoint, "a dictionary key that no"),
    "colliding key": (
        b"\x80\x02}\x8a\x09" + b"\x11" * 9 + b"Ns.",
        CorruptCheckpoint,
        "key that no",
    ),
    "key twice": (b"\x80\x02}(K\x01NK\x01Nu.", CorruptCheckpoint, "holds a key twice"),
    "empty": (b"", CorruptCheckpoint, "x.pkl: the pickle is cut short at byte 0"),
    "no stop": (b"\x80\x02N", CorruptCheckpoint, "x.pkl: the pickle is cut short at byte 3"),
    "trailing": (b"\x80\x02N.N.", CorruptCheckpoint, "x.pkl: 2 bytes follow the pickle's end at 4"),
    "protocol 9": (b"\x80\x09N" + b"." * 9, CorruptCheckpoint, "pickle protocol 9, which does not"),
    "unknown opcode": (b"\x80\x02\xff" + b"." * 9, CorruptCheckpoint, "no opcode 0xff (byte 2)"),
    "memo": (b"\x80\x02h\x07" + b"." * 9, CorruptCheckpoint, "malformed pickle: bad operands"),
    "underflow": (b"\x80\x02((tR" + b"." * 9, CorruptCheckpoint, "malformed pickle"),
    "surrogate": (b"V\\ud800\n" + b"." * 9, CorruptCheckpoint, "malformed pickle"),
    "left over": (b"\x80\x02NN.", CorruptCheckpoint, "objects that belong to nothing"),
    "wrong arguments": (b"\x80\x02cknown\npair\n)R" + b"." * 9, CorruptCheckpoint, "malformed"),
    "not a pickle": (
        b"version https://git-lfs.github.com/spec/v1\n",
        CorruptCheckpoint,
        "no opcode",
    ),
}


@pytest.mark.parametrize(("data", "error", "words"), HOSTILE.values(), ids=HOSTILE)
def test_hostile(data, error, words, capfd):
    with pytest.raises(NemoconvError) as caught:
        load(data)
    assert type(caught.value) is error
    assert words in str(caught.value)
    assert str(caught.value).startswith("x.pkl: ")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().out == ""


def test_limits():
    with pytest.raises(UnsafeCheckpoint, match=r"^x.pkl: a pickle of 9 bytes, more than the 8 all"):
        load(b"." * 9, max_bytes=8)
    with pytest.raises(UnsafeCheckpoint, match=r"^x.pkl: a pickle of more than 10 opcodes$"):
        load(b"\x80\x02" + b"N" * 20 + b".", max_opcodes=10)
    for store in (b"\x94", b"q\x00Nq\x01Nq\x02"):
        with pytest.raises(UnsafeCheckpoint, match="remembers more than 2 objects"):
            load(b"\x80\x04N" + store * 3 + b".", max_memo=2)


def test_bombs_are_read_in_bounded_time_and_refused_by_the_check():
    start = time.process_time()
    assert load(hostile.memo_bomb()) is None
    for data, words in (
        (hostile.list_bomb(), "describes more than 10,000,000 values"),
        (hostile.nested_lists(400_000), "values nested more than 200 deep"),
        (hostile.self_list(), "a list that contains itself"),
    ):
        value = load(data)
        with pytest.raises(UnsafeCheckpoint, match=words):
            check_bounded(value, "x.pkl")
    assert time.process_time() - start < 5


def test_check_bounded_allows_objects_in_a_circle():
    value = Stub(("a", "b"))
    value.state = {"parent": value, "items": [1, (2, 3)]}
    check_bounded([value, value], "x")
    value.state["items"].append(value.state["items"])
    with pytest.raises(UnsafeCheckpoint, match="contains itself"):
        check_bounded([value], "x")


SAMPLES = [
    pickle.dumps({"a": [1, 2.5, "x", (None, True)], "b": argparse.Namespace(c={1, 2})}, protocol)
    for protocol in (2, 4)
]


@settings(max_examples=400, deadline=500)
@given(st.sampled_from(SAMPLES), st.data())
def test_damage_gives_a_clean_error(sample, data):
    raw = bytearray(sample)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    try:
        check_bounded(load(bytes(raw)), "x")
    except NemoconvError as error:
        message = str(error)
    else:
        message = ""
    assert "\n" not in message


@settings(max_examples=300, deadline=500)
@given(st.binary(max_size=60))
def test_noise_gives_a_clean_error(raw):
    with contextlib.suppress(NemoconvError):
        load(b"\x80\x02" + raw)


@settings(max_examples=100, deadline=None)
@given(st.integers(-(2**500), 2**500))
def test_integers_are_written_as_pickle_reads_them(value):
    assert pickle.loads(integer(value) + b".") == value


def test_writer():
    value = {"a": [1, -1, 1 << 40, 1.5, math.inf, None, True, False, "ä", ("a", "b")], "b": {}}
    writer = PickleWriter()
    writer.value(value)
    data = writer.finish()
    assert pickle.loads(data) == load(data) == value
    writer = PickleWriter()
    for index in range(600):  # over the 256 short memo indexes
        writer.text(str(index % 300))
    assert pickle.loads(b"\x80\x02(" + writer.finish()[2:-1] + b"t.") == tuple(
        str(index % 300) for index in range(600)
    )
