from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from nemoconv.converters.nemo2.context import (
    AUTO_TOKENIZER,
    NemoContext,
    Sizes,
    TokenizerRef,
    build_context,
    read_context,
)
from nemoconv.errors import NemoconvError
from nemoconv.formats.text import fiddle
from nemoconv.formats.text.fiddle import Node, Symbol, Value
from nemoconv.stores.files import SourceDir
from nemoconv.tensors.layout import Layout

FIXTURES = Path(__file__).parents[3] / "fixtures" / "nemo2"
MODEL = Symbol("nemo.collections.llm.gpt.model.llama", "LlamaModel")
CONFIG = Symbol("nemo.collections.llm.gpt.model.llama", "LlamaConfig")
FIELDS: dict[str, Value] = {
    "num_layers": 4,
    "rotary_base": 500000.0,
    "bf16": True,
    "params_dtype": Symbol("torch", "bfloat16"),
}


def read(path: Path) -> NemoContext:
    return read_context(SourceDir(path))


def refused(path: Path) -> str:
    with pytest.raises(NemoconvError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(path), "CKPT")


def write(path: Path, root: Node, folder: str = "context") -> Path:
    (path / folder).mkdir(parents=True, exist_ok=True)
    (path / folder / "io.json").write_bytes(fiddle.emit(root))
    return path


def a_model(tokenizer: Value = None, fields: dict[str, Value] = FIELDS, **more: Value) -> Node:
    """A context with one model, whatever its tokenizer."""
    parts = {"config": Node(CONFIG, dict(fields)), "tokenizer": tokenizer, **more}
    return Node(Symbol("nemo.lightning.io.pl", "TrainerContext"), {"model": Node(MODEL, parts)})


def test_a_real_checkpoint() -> None:
    context = read(FIXTURES / "nemo_tp1pp1")
    assert (context.model, context.config_class, context.folder) == (MODEL, CONFIG, "context")
    assert len(context.fields) == 35
    assert context.fields["num_layers"] == 4
    assert context.fields["params_dtype"] == Symbol("torch", "bfloat16")
    assert context.yaml_fields["activation_func"] == Symbol("torch.nn.functional", "silu")
    assert context.yaml_fields["qk_layernorm"] is False
    assert context.tokenizer == TokenizerRef(AUTO_TOKENIZER, "nemo_tokenizer", None, {})
    assert context.generation_config == "artifacts"
    assert context.trainer == Sizes(tensor=1, pipeline=1, context=1, expert=1)
    assert context.peft is None


def test_the_sizes_of_a_real_run_and_a_real_adapter() -> None:
    assert read(FIXTURES / "nemo_tp2pp1").trainer.tensor == 2
    peft = read(FIXTURES / "nemo_lora_tp1pp1").peft
    assert peft is not None
    assert peft.symbol == Symbol("nemo.collections.llm.peft.lora", "LoRA")
    assert (peft.args["dim"], peft.args["alpha"]) == (8, 16)


def test_io_json_and_model_yaml_say_the_same_of_a_real_checkpoint() -> None:
    context = read(FIXTURES / "nemo_tp1pp1")
    assert {key: context.yaml_fields[key] for key in context.fields} == context.fields


def test_model_yaml_alone_is_enough(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "nemo_lora_tp1pp1" / "context", tmp_path / "context")
    (tmp_path / "context" / "io.json").unlink()
    context = read(tmp_path)
    assert (context.model, context.config_class, context.fields) == (MODEL, CONFIG, {})
    assert context.yaml_fields["num_layers"] == 4
    assert context.tokenizer is not None
    assert context.tokenizer.artifact == "nemo_tokenizer"
    assert context.generation_config == "artifacts"
    assert context.trainer.tensor == 1
    assert context.peft is not None
    assert context.peft.args["dim"] == 8


def test_an_older_checkpoint_has_no_context_folder(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "nemo_tp1pp1" / "context", tmp_path / "old")
    context = read(tmp_path / "old")
    assert context.folder == ""
    assert context.tokenizer is not None
    assert context.tokenizer.artifact == "nemo_tokenizer"


def test_neither_file(tmp_path: Path) -> None:
    assert refused(tmp_path) == (
        "CKPT: no context/io.json and no context/model.yaml;"
        " a NeMo 2 checkpoint has a context folder beside weights"
    )


def test_what_is_built_is_read_again(tmp_path: Path) -> None:
    lora = Node(Symbol("nemo.collections.llm.peft.lora", "LoRA"), {"dim": 8, "target": ["a"]})
    files = build_context(
        MODEL,
        CONFIG,
        FIELDS,
        Layout(2, 4),
        has_generation_config=True,
        model_transform=lora,
    )
    (tmp_path / "context" / "nemo_tokenizer").mkdir(parents=True)
    (tmp_path / "context" / "artifacts").mkdir()
    (tmp_path / "context" / "artifacts" / "generation_config.json").write_text("{}")
    for name, data in files.items():
        (tmp_path / "context" / name).write_bytes(data)
    context = read(tmp_path)
    assert FIELDS.items() <= context.fields.items()
    assert context.fields == context.yaml_fields
    assert context.fields["pipeline_dtype"] == Symbol("torch", "bfloat16")
    assert context.trainer == Sizes(tensor=2, pipeline=4, expert=1)
    assert context.tokenizer == TokenizerRef(AUTO_TOKENIZER, "nemo_tokenizer", None, {})
    assert (context.generation_config, context.peft) == ("artifacts", lora)


def test_what_is_built_holds_what_nemo_needs_to_load_it() -> None:
    files = build_context(MODEL, CONFIG, FIELDS, has_tokenizer=False)
    root = fiddle.parse(files["io.json"], "io.json")
    assert list(root.args) == ["model", "trainer", "extra"]
    assert root.args["extra"] == {}
    model, trainer = root.args["model"], root.args["trainer"]
    assert isinstance(model, Node)
    assert isinstance(trainer, Node)
    assert list(model.args) == ["config"]
    assert (trainer.args["accelerator"], trainer.args["devices"]) == ("cpu", 1)
    described = yaml.safe_load(files["model.yaml"])
    assert described["_target_"] == str(MODEL)
    assert described["config"]["params_dtype"] == {"_call_": False, "_target_": "torch.bfloat16"}


def test_building_is_reproducible_and_leaves_its_arguments_alone() -> None:
    fields = dict(FIELDS)
    first = build_context(MODEL, CONFIG, fields, Layout(1, 2))
    assert first == build_context(MODEL, CONFIG, fields, Layout(1, 2))
    assert fields == FIELDS


# As NeMo 2.5.3 wrote them: io_dump of a LlamaModel with each tokenizer class.
NEMO = "nemo.collections.common.tokenizers"


@pytest.mark.parametrize(
    ("module", "name", "args", "rest"),
    [
        ("sentencepiece_tokenizer", "SentencePieceTokenizer", {"model_path": "t.model"}, {}),
        (
            "tiktoken_tokenizer",
            "TiktokenTokenizer",
            {"vocab_file": "t.model", "vocab_size": 280, "num_special_tokens": 24},
            {"vocab_size": 280, "num_special_tokens": 24},
        ),
    ],
)
def test_other_tokenizers(
    tmp_path: Path, module: str, name: str, args: dict[str, Value], rest: dict[str, Value]
) -> None:
    symbol = Symbol(f"{NEMO}.{module}", name)
    write(tmp_path, a_model(Node(symbol, args)))
    (tmp_path / "context" / "t.model").write_bytes(b"x")
    assert read(tmp_path).tokenizer == TokenizerRef(symbol, "t.model", None, rest)


@pytest.mark.parametrize(
    "given",
    [
        "meta-llama/Llama-3.2-1B",
        "/root/tokenizer",
        Node(Symbol("nemo.lightning.io.artifact.file", "DirOrStringArtifact"), {"attr": "gpt2"}),
    ],
)
def test_a_tokenizer_that_is_not_in_the_checkpoint_is_a_name(tmp_path: Path, given: Value) -> None:
    write(tmp_path, a_model(Node(AUTO_TOKENIZER, {"pretrained_model_name": given})))
    tokenizer = read(tmp_path).tokenizer
    assert tokenizer is not None
    assert tokenizer.artifact is None
    assert tokenizer.name == (given if isinstance(given, str) else "gpt2")


def test_no_tokenizer(tmp_path: Path) -> None:
    assert read(write(tmp_path, a_model())).tokenizer is None


@pytest.mark.parametrize("given", ["../../../etc/passwd", "a/../../../secret", "link"])
def test_a_tokenizer_outside_the_checkpoint_is_refused(tmp_path: Path, given: str) -> None:
    path = write(tmp_path / "c", a_model(Node(AUTO_TOKENIZER, {"pretrained_model_name": given})))
    (path / "context" / "link").symlink_to("/etc")
    text = refused(path)
    assert "is not a plain relative name" in text or "leads outside the checkpoint" in text


def test_a_generation_config_outside_the_checkpoint_is_refused(tmp_path: Path) -> None:
    outside = Node(Symbol("m", "f"), {"pretrained_model_name_or_path": "./../../x"})
    text = refused(write(tmp_path, a_model(fields={**FIELDS, "generation_config": outside})))
    assert "which is not a plain relative name" in text


@pytest.mark.parametrize(
    ("root", "message"),
    [
        (Node(Symbol("os", "system"), {"command": "ls"}), "CKPT/context/io.json: no model"),
        (
            Node(Symbol("a", "T"), {"model": Symbol("os", "system")}),
            "CKPT/context/io.json: no model",
        ),
        (
            Node(Symbol("a", "T"), {"model": Node(Symbol("os", "system"), {"x": 1})}),
            "CKPT/context/io.json: the system has no config",
        ),
        (
            a_model(fields={"rotary_base": float("nan")}),
            "CKPT/context/io.json: the field 'rotary_base' is nan",
        ),
        (
            a_model(fields={"tensor_model_parallel_size": "2"}),
            "CKPT/context/io.json: tensor_model_parallel_size is '2'",
        ),
        (
            a_model(fields={"tensor_model_parallel_size": -1}),
            "CKPT/context/io.json: tensor_model_parallel_size is '-1'",
        ),
        (
            a_model(Node(AUTO_TOKENIZER, {"pretrained_model_name": [1]})),
            "CKPT/context/io.json: the tokenizer's path is not text",
        ),
    ],
)
def test_what_is_refused_and_how(tmp_path: Path, root: Node, message: str) -> None:
    assert refused(write(tmp_path, root)) == message


def test_a_hostile_class_is_only_a_name(tmp_path: Path) -> None:
    model = Node(Symbol("os", "system"), {"config": Node(Symbol("subprocess", "run"), {"a": 1})})
    context = read(write(tmp_path, Node(Symbol("a", "T"), {"model": model})))
    assert (context.model, context.config_class) == (
        Symbol("os", "system"),
        Symbol("subprocess", "run"),
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"config: {}", "CKPT/context/model.yaml: no '_target_', so no model"),
        (b"_target_: a.B", "CKPT/context/model.yaml: the B has no config"),
        (b"[1]", "CKPT/context/model.yaml: holds a list, not a mapping"),
        (b"a: !!python/name:os.system", "CKPT/context/model.yaml: line 1: the tag "),
    ],
)
def test_a_model_yaml_that_makes_no_sense(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "context").mkdir()
    (tmp_path / "context" / "model.yaml").write_bytes(data)
    assert refused(tmp_path).startswith(message)
