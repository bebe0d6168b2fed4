from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from nemoconv.errors import NemoconvError
from nemoconv.formats.text import fiddle
from nemoconv.formats.text.fiddle import CONFIG, PARTIAL, Node, Symbol, emit, parse

REAL = sorted((Path(__file__).parents[3] / "fixtures" / "nemo2").glob("*/context/io.json"))
DICT = {"type": "pyref", "module": "builtins", "name": "dict"}
TUPLE = {"type": "pyref", "module": "builtins", "name": "tuple"}


def refused(objects: dict[str, Any], root: object = None) -> str:
    document = {"root": root or {"type": "ref", "key": "root"}, "objects": objects}
    with pytest.raises(NemoconvError) as caught:
        parse(json.dumps(document).encode(), "io.json")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def an_object(kind: dict[str, str], *items: object, metadata: object = None) -> dict[str, Any]:
    return {"type": kind, "items": [["x", item] for item in items], "metadata": metadata}


def ref(key: str) -> dict[str, str]:
    return {"type": "ref", "key": key}


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.parts[-3])
def test_what_nemo_wrote_is_written_again_byte_for_byte(path: Path) -> None:
    data = path.read_bytes()
    root = parse(data, str(path))
    assert root.symbol == Symbol("nemo.lightning.io.pl", "TrainerContext")
    assert emit(root) == data


def test_there_are_real_files() -> None:
    assert REAL


def test_a_real_config_reads_as_plain_data() -> None:
    root = parse(REAL[0].read_bytes(), "io.json")
    model = root.args["model"]
    assert isinstance(model, Node)
    config = model.args["config"]
    assert isinstance(config, Node)
    assert str(config.symbol) == "nemo.collections.llm.gpt.model.llama.LlamaConfig"
    assert config.args["num_layers"] == 4
    assert config.args["params_dtype"] == Symbol("torch", "bfloat16")


def test_every_kind_of_value_survives() -> None:
    inner = Node(Symbol("a.b", "C"), {"f": 1.5, "t": (1, (2,), ()), "l": [None, True], "s": "é"})
    root = Node(
        Symbol("a", "Root"),
        {
            "node": inner,
            "partial": Node(Symbol("a", "f"), {"x": {"k": 1, "'": [{}]}}, PARTIAL),
            "enum": Symbol("m.enums", "AttnBackend.auto"),
            "object": Node(Symbol("m", "LoRA"), {"dim": 8}, Symbol("m", "LoRA")),
            "inf": float("inf"),
        },
    )
    assert parse(emit(root), "io.json") == root
    assert emit(root) == emit(parse(emit(root), "io.json"))


def test_every_value_carries_the_path_that_nemo_looks_for() -> None:
    written = json.loads(emit(Node(Symbol("a", "R"), {"m": Node(Symbol("a", "M"), {"d": {"k": [7]}})})))
    paths = [path for value in written["objects"].values() for path in value.get("paths", ())]
    assert paths == ["<root>.m.d['k']", "<root>.m.d", "<root>.m", "<root>"]
    assert {"type": "leaf", "value": 7, "paths": ["<root>.m.d['k'][0]"]} in [
        item[1] for item in written["objects"]["list_1"]["items"]
    ]


def test_nothing_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    root = Node(Symbol("planted", "f"), {"x": Node(Symbol("os", "system"), {"command": "exit 1"})})
    assert parse(emit(root), "io.json") == root
    assert "planted" not in sys.modules


def test_an_unknown_type_is_kept_but_not_written() -> None:
    kind = {"type": "pyref", "module": "os", "name": "system"}
    document = {
        "root": {"type": kind, "items": [["Attr(name='c')", "ls"], ["?", 1]], "metadata": None},
        "objects": {},
    }
    root = parse(json.dumps(document).encode(), "io.json")
    assert root == Node(Symbol("os", "system"), {"c": "ls", "?": 1}, None)
    with pytest.raises(ValueError, match=r"<root>: a os\.system cannot be written"):
        emit(root)


def test_sets_bytes_and_defaultdicts() -> None:
    pyref = {"type": "pyref", "module": "builtins"}
    objects = {
        "set": an_object({**pyref, "name": "set"}, 1, 2),
        "bytes": an_object({**pyref, "name": "bytes"}, "ab"),
        "default": an_object(
            {"type": "pyref", "module": "collections", "name": "defaultdict"},
            5,
            metadata=an_object(TUPLE, {**pyref, "name": "list"}, an_object(TUPLE, "k")),
        ),
        "root": an_object(
            {"type": "pyref", "module": "m", "name": "T"}, ref("set"), ref("bytes"), ref("default")
        ),
    }
    root = parse(json.dumps({"root": ref("root"), "objects": objects}).encode(), "io.json")
    text = Node(Symbol("builtins", "bytes"), {"x": "ab"}, None)
    assert root.args == {"0": (1, 2), "1": text, "2": {"k": 5}}


def test_cycles_are_refused() -> None:
    assert refused({"root": an_object(TUPLE, ref("root"))}) == ("io.json: the object 'root' contains itself")
    loop = {"root": an_object(DICT, metadata=ref("b")), "b": an_object(TUPLE, ref("root"))}
    assert refused(loop) == "io.json: the object 'root' contains itself"


def test_deep_graphs_are_refused_without_recursion() -> None:
    chain = {f"o{i}": an_object(TUPLE, ref(f"o{i + 1}")) for i in range(50_000)}
    text = refused({**chain, "o50000": an_object(TUPLE)}, ref("o0"))
    assert text == "io.json: objects nested deeper than 64 levels"
    with pytest.raises(NemoconvError, match=r"io\.json: nested deeper than 64 levels"):
        parse(b"[" * 200_000, "io.json")


def test_shared_parts_do_not_multiply() -> None:
    bomb = {f"o{i}": an_object(TUPLE, *[ref(f"o{i + 1}")] * 10) for i in range(30)}
    text = refused({**bomb, "o30": an_object(TUPLE)}, ref("o0"))
    assert text == "io.json: stands for more than 1,000,000 values"


def test_the_number_of_objects_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fiddle, "MAX_OBJECTS", 2)
    assert refused(dict.fromkeys("abc")) == "io.json: 3 objects, more than 2"


@pytest.mark.parametrize(
    ("root", "message"),
    [
        (an_object(TUPLE), "the root is not a configuration"),
        (ref("nowhere"), "refers to an object 'nowhere' that is not there"),
        ({"type": "ref", "key": ["a"]}, "refers to an object ['a'] that is not there"),
        ({"type": "magic"}, "an object of unknown type 'magic'"),
        ({"type": {"type": "leaf"}}, "an object of unknown type {'type': 'leaf'}"),
        ({"type": "leaf", "value": [1]}, "a leaf that is not a number, text, true, false or null"),
        ({"type": "pyref", "module": "os"}, "a pyref without module and name"),
        ({"type": TUPLE, "items": {}}, "the items of a builtins.tuple are not pairs"),
        ({"type": TUPLE, "items": [[1, 2]]}, "the items of a builtins.tuple are not pairs"),
        (an_object(DICT, 1, metadata=an_object(TUPLE)), "a dict whose keys and values differ"),
        (
            an_object(DICT, 1, 2, metadata=an_object(TUPLE, "k", "k")),
            "the key 'k' appears twice",
        ),
        (
            an_object({"type": "pyref", "module": CONFIG.module, "name": "Config"}),
            "a Config without its metadata",
        ),
    ],
)
def test_what_is_refused_and_how(root: object, message: str) -> None:
    assert refused({}, root).startswith(f"io.json: {message}")


def test_a_config_whose_names_and_values_differ_is_refused() -> None:
    written = json.loads(emit(Node(Symbol("a", "R"), {"x": 1, "y": 2})))
    written["objects"]["r_1"]["items"].pop()
    assert refused(written["objects"], written["root"]) == "io.json: a.R: 1 arguments under 2 names"
    names = written["objects"]["tuple_1"]["items"]
    names[1][1] = "x"
    written["objects"]["r_1"]["items"] *= 2
    assert refused(written["objects"], written["root"]) == "io.json: the key 'x' appears twice"


@pytest.mark.parametrize("data", [b"{}", b'{"root": 1, "objects": {}}', b'{"root": {}}'])
def test_other_json_is_not_a_fiddle_file(data: bytes) -> None:
    with pytest.raises(NemoconvError, match=r"io\.json: no 'root' and 'objects', so not a Fiddle"):
        parse(data, "io.json")
