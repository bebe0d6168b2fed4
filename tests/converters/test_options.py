"""Options: declared once, and the same on the command line, in Python, in messages and in the documentation."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest
import tiny

import nemoconv
from nemoconv.converters import options
from nemoconv.converters.options import COMMON, Option, Settings, check_dtype, parse_size
from nemoconv.converters.registry import find_format, formats, target_format, writable
from nemoconv.converters.run import convert as conversion
from nemoconv.errors import UsageError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    tiny.write(tmp_path / "hf")
    return tmp_path / "hf"


def refused(call) -> str:
    with pytest.raises(UsageError) as caught:
        call()
    return str(caught.value)


def test_keywords_for_type_checkers_are_the_options_that_there_are() -> None:
    shown = {"layout", "dtype", "overwrite", "verify", "dry_run"}  # in the signature itself
    own = {option.name for each in formats() for option in each.options}
    every = ({option.name for option in COMMON} | own) - shown
    assert set(conversion.Keywords.__annotations__) == every
    common = set(options.Common.__annotations__)
    assert common - own == {option.name for option in COMMON} - shown - {"exact"}


def test_types_for_type_checkers_are_those_of_the_options() -> None:
    kinds = {"flag": "bool", "number": "int", "size": "int | str", "words": "Sequence", "path": "str | Path"}
    hints = {name: str(hint) for name, hint in conversion.Keywords.__annotations__.items()}
    for each in formats():
        for option in each.options:
            said = hints[option.name]
            assert kinds.get(option.kind, "str") in said or all(
                repr(c) in said.replace('"', "'") for c in option.choices
            )


def test_settings_are_the_common_options_that_are_no_part_of_a_signature() -> None:
    assert {field.name for field in fields(Settings)} == {option.name for option in options.SETTINGS}
    assert Settings.of({}) == Settings()
    assert Settings.of({"max_memory": "1GiB", "device": "CPU"}).max_memory == 1 << 30
    assert get_type_hints(Option)


def test_every_option_has_its_words() -> None:
    for option in (*COMMON, *(option for each in formats() for option in each.options)):
        assert option.help.endswith(".") or "see docs" in option.help, option.name
        assert option.example or option.kind in ("flag", "path"), option.name
        if option.example and option.kind not in ("words", "path"):
            assert option.parse(option.example) is not None


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"flavour": "std"}, "unknown option 'flavour'; did you mean 'flavor'? one of: "),
        ({"tp": 2}, "unknown option 'tp'; one of: "),
        ({"flavor": "std"}, "flavor means nothing for hf -> nemo2; it is an option of onnx"),
        ({"pack": True}, "pack means nothing for hf -> nemo2; it is an option of onnx"),
        ({"rank_files": True}, "rank_files means nothing for hf -> nemo2; it is an option of nemo"),
        ({"head": "ctc"}, "head means nothing for hf -> nemo2; it is an option of nemo"),
        (
            {"max_shard_nbytes": 9},
            "max_shard_nbytes means nothing for hf -> nemo2; it is an option of hf as the target, safetensors "
            "and onnx",
        ),
        (
            {"experts": "singelton"},
            "unknown experts 'singelton'; did you mean 'singleton'? one of stacked, sin",
        ),
        ({"device": "gpu"}, "unknown device 'gpu'; did you mean 'cpu'? one of cpu, cuda"),
        ({"dtype": "bf61"}, "unknown dtype 'bf61'; did you mean 'bf16'? one of float64, float32, bfloat16, "),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size=0 is not a positive number"),
        ({"tensor_parallel_size": "two"}, "tensor_parallel_size='two' is not a positive number"),
        ({"max_memory": "much"}, "max_memory: 'much' is not a size such as 512MiB or 5GB"),
        ({"exact": True}, "exact is of no use without a dtype; leave it out, or say what to cast to"),
        ({"normalize_rows": 1}, "normalize_rows=1 is neither True nor False"),
    ],
)
def test_what_means_nothing_is_told(hf: Path, tmp_path: Path, given: dict[str, object], says: str) -> None:
    message = refused(lambda: nemoconv.convert(hf, tmp_path / "out", to="nemo2", **given))
    assert message.startswith(says)
    assert not (tmp_path / "out").exists()


def test_an_option_of_the_other_side(hf: Path, tmp_path: Path) -> None:
    message = refused(lambda: nemoconv.convert(hf, tmp_path / "out", to="onnx", dequantize=True))
    assert message == "dequantize means nothing for hf -> onnx; it is an option of onnx as the source"


def test_none_and_false_say_nothing(hf: Path, tmp_path: Path) -> None:
    nothing = {"flavor": None, "pack": False, "head": None, "config": None, "tensor_parallel_size": None}
    report = nemoconv.convert(hf, tmp_path / "out", to="nemo2", **nothing)
    assert report.layout == "tp1 pp1"


def test_options_of_a_reader(hf: Path) -> None:
    with nemoconv.open(hf, config=hf) as checkpoint:
        assert checkpoint.config["model_type"] == "llama"
    assert refused(lambda: nemoconv.open(hf, head="ctc")) == (
        "head means nothing for reading hf; it is an option of nemo"
    )
    assert refused(lambda: nemoconv.open(hf, konfig=hf)).startswith(
        "unknown option 'konfig'; did you mean 'conf"
    )


def test_a_comparison_gives_options_to_those_that_have_them(hf: Path, tmp_path: Path) -> None:
    nemoconv.convert(hf, tmp_path / "plain", to="safetensors")
    assert nemoconv.verify(hf, tmp_path / "plain", config=hf).equal
    assert refused(lambda: nemoconv.verify(tmp_path / "plain", config=hf)).startswith("config means nothing")


def test_change_of_layout(hf: Path, tmp_path: Path) -> None:
    nemoconv.convert(hf, tmp_path / "nemo", to="nemo2")
    for given in ({"flavor": "std"}, {"experts": "singleton", "exact": True}):
        assert refused(lambda given=given: nemoconv.reshard(tmp_path / "nemo", tmp_path / "out", **given))


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("HF", "hf"), ("HuggingFace", "hf"), ("hugging-face", "hf"), ("transformers", "hf"), ("NeMo2", "nemo2"),
        ("nemo_2", "nemo2"), ("NeMo 2.0", "nemo2"), ("nemo1", "nemo"), (".nemo", "nemo"), ("ONNX", "onnx"),
        ("mcore", "megatron"), ("Megatron-LM", "megatron"), ("LoRA", "peft"),
    ],
)  # fmt: skip
def test_names_of_formats(said: str, meant: str) -> None:
    assert find_format(said).name == meant


def test_formats_that_there_are_not() -> None:
    written = "one of: hf, nemo2, nemo, safetensors, onnx, peft"
    assert refused(lambda: target_format("gguf")) == f"unknown format 'gguf'; {written}"
    assert refused(lambda: target_format("nemo3")).startswith("unknown format 'nemo3'; did you mean 'nemo")
    assert refused(lambda: target_format("mcore")) == f"megatron is read, and cannot be written; {written}"


def test_there_is_one_list_of_targets() -> None:
    from click.testing import CliRunner

    from nemoconv.cli import main

    listed = ", ".join(writable())
    for command in ("convert", "plan"):
        text = " ".join(CliRunner().invoke(main, [command, "--help"]).output.split())
        assert f"--to FORMAT {listed}; the source's format is detected." in text
    page = (ROOT / "docs" / "commands.md").read_text()
    (line,) = (line for line in page.splitlines() if line.startswith("| `nemoconv convert SRC OUT --to"))
    assert re.findall(r"`(\w+)`", line.partition("|")[2].partition("|")[2]) == writable()


def test_types_by_the_names_that_people_have() -> None:
    names = {"BF16": "bfloat16", "torch.bfloat16": "bfloat16", "fp32": "float32", "Float16": "float16"}
    assert {name: check_dtype(name) for name in names} == names
    assert check_dtype(None) is None


def test_sizes() -> None:
    assert [parse_size(text) for text in ("1000", "5GB", "512MiB", "1.5 kb")] == [
        1000,
        5 * 10**9,
        512 << 20,
        1500,
    ]
