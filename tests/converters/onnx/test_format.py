"""ONNX output: what the graph refers to, both layouts, and a graph added to a directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import tiny

from nemoconv.converters.look.verify import verify
from nemoconv.converters.registry import recognize
from nemoconv.converters.run.convert import convert
from nemoconv.converters.run.onnx_in_place import add_graph
from nemoconv.errors import (
    CorruptCheckpoint,
    MappingError,
    NemoconvError,
    OutputError,
    UnsafeCheckpoint,
    UnsupportedArchitecture,
    UnsupportedConfig,
    UnsupportedError,
    UnsupportedFormat,
    UsageError,
)
from nemoconv.mappings import samples
from nemoconv.stores import output

onnx = pytest.importorskip("onnx")

GRAPH = {"model.onnx", "genai_config.json"}


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    tiny.write(tmp_path / "hf")
    return tmp_path / "hf"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def graph(folder: Path) -> Any:
    return onnx.load(folder / "model.onnx", load_external_data=False)


def referenced(folder: Path) -> dict[str, tuple[tuple[int, ...], bytes]]:
    """name -> (shape, bytes) of everything that the graph says lies beside it."""
    found = {}
    for tensor in graph(folder).graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in tensor.external_data}
            data = (folder / place["location"]).read_bytes()
            at, length = int(place["offset"]), int(place["length"])
            assert at + length <= len(data)
            found[tensor.name] = (tuple(tensor.dims), data[at : at + length])
    return found


@pytest.mark.parametrize("flavor", ["std", "genai"])
@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize(("dtype", "shards"), [("bfloat16", 3), ("float32", 1), ("float16", 1)])
def test_every_reference_is_the_tensor_of_that_name(
    tmp_path: Path, dtype: str, shards: int, pack: bool, flavor: str
) -> None:
    held = tiny.write(tmp_path / "hf", shards=shards, dtype=dtype, torch_dtype=dtype)
    out = tmp_path / "onnx"
    convert(tmp_path / "hf", out, to="onnx", flavor=flavor, pack=pack, max_shard_nbytes=4000, verify=True)
    found = referenced(out)
    assert found == {name: (array.shape, array.tobytes()) for name, array in held.items()}
    assert (len(list(out.glob("*.safetensors"))) > 1) != pack
    assert (out / "model.onnx.data").exists() == pack
    onnx.checker.check_model(out / "model.onnx", full_check=flavor == "std")


def test_a_packed_file_is_aligned_and_the_rest_is_zero(hf: Path, tmp_path: Path) -> None:
    convert(hf, tmp_path / "onnx", to="onnx", pack=True)
    data = bytearray((tmp_path / "onnx" / "model.onnx.data").read_bytes())
    for tensor in graph(tmp_path / "onnx").graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place:
            at, length = int(place["offset"]), int(place["length"])
            assert at % 4096 == 0
            data[at : at + length] = bytes(length)
    assert not any(data)


@pytest.mark.parametrize("pack", [False, True])
def test_the_way_back_is_exact(hf: Path, tmp_path: Path, pack: bool) -> None:
    out, back = tmp_path / "onnx", tmp_path / "back"
    convert(hf, tmp_path / "straight", to="hf")
    convert(hf, out, to="onnx", pack=pack)
    assert recognize(out).name == ("onnx" if pack else "hf")
    assert verify(out).equal
    assert verify(hf, out).equal
    convert(out, back, to="hf", verify=True)
    for name in ("config.json", "model.safetensors"):
        assert (back / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    told = {entry.key: entry.value for entry in graph(out).metadata_props}
    assert told["nemoconv.config"] == (out / "config.json").read_text()
    assert told["nemoconv.format"] == "1"
    assert told["nemoconv.flavor"] == "std"


def test_a_change_of_any_file_is_found(hf: Path, tmp_path: Path) -> None:
    for pack in (False, True):
        out = tmp_path / f"onnx{pack}"
        convert(hf, out, to="onnx", pack=pack)
        for path in sorted(out.iterdir()):
            if path.name == "nemoconv_manifest.json":
                continue
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
            with pytest.raises(NemoconvError):
                verify(out)
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        assert verify(out).equal


def test_nemo_becomes_the_same_files_as_hugging_face(hf: Path, tmp_path: Path) -> None:
    convert(hf, tmp_path / "straight", to="onnx")
    convert(hf, tmp_path / "nemo", to="nemo2", tensor_parallel_size=2)
    convert(tmp_path / "nemo", tmp_path / "round", to="onnx")
    straight, around = files(tmp_path / "straight"), files(tmp_path / "round")
    assert (
        straight.keys()
        == around.keys()
        == {*GRAPH, "config.json", "model.safetensors", "nemoconv_manifest.json"}
    )
    for name in straight.keys() - {"nemoconv_manifest.json"}:
        assert straight[name] == around[name], name


def test_inputs_and_outputs_have_their_usual_names_and_free_sizes(hf: Path, tmp_path: Path) -> None:
    convert(hf, tmp_path / "onnx", to="onnx")
    found = graph(tmp_path / "onnx")

    def sizes(value: Any) -> list[Any]:
        return [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]

    inputs = {value.name: sizes(value) for value in found.graph.input}
    assert inputs.pop("input_ids") == inputs.pop("position_ids") == ["batch_size", "sequence_length"]
    assert inputs.pop("attention_mask") == ["batch_size", "total_sequence_length"]
    assert inputs == {
        f"past_key_values.{layer}.{kind}": ["batch_size", 2, "past_sequence_length", 8]
        for layer in (0, 1)
        for kind in ("key", "value")
    }
    outputs = {value.name: sizes(value) for value in found.graph.output}
    assert outputs.pop("logits") == ["batch_size", "sequence_length", 40]
    assert outputs == {
        f"present.{layer}.{kind}": ["batch_size", 2, "total_sequence_length", 8]
        for layer in (0, 1)
        for kind in ("key", "value")
    }
    assert [(entry.domain, entry.version) for entry in found.opset_import] == [("", 23)]
    assert found.ir_version == 10


def test_a_long_context_takes_no_room(tmp_path: Path) -> None:
    sizes = []
    for length in (64, 131072):
        folder = tmp_path / str(length)
        tiny.write(folder / "hf", max_position_embeddings=length)
        convert(folder / "hf", folder / "onnx", to="onnx", flavor="genai")
        sizes.append((folder / "onnx" / "model.onnx").stat().st_size)
    assert abs(sizes[1] - sizes[0]) < 10


def test_a_tied_head_is_one_weight(tmp_path: Path) -> None:
    tiny.write(tmp_path / "hf", tie_word_embeddings=True)
    convert(tmp_path / "hf", tmp_path / "onnx", to="onnx")
    found = graph(tmp_path / "onnx").graph
    users = [node.op_type for node in found.node if "model.embed_tokens.weight" in node.input]
    assert sorted(users) == ["Cast", "Gather"]
    assert "lm_head.weight" not in {tensor.name for tensor in found.initializer}


def test_a_new_dtype_is_in_weights_cache_and_graph(tmp_path: Path) -> None:
    arrays = {
        name: numpy.full(
            shape, 0x4780 if "norm" in name else 0x3F80, numpy.uint16
        )  # 65536, which is too much; 1
        for name, shape in tiny.shapes(tiny.CONFIG).items()
    }
    tiny.write(tmp_path / "hf", arrays=arrays)
    report = convert(tmp_path / "hf", tmp_path / "onnx", to="onnx", dtype="fp16")
    assert "decoder.final_layernorm.weight: 16 finite values became infinite in the new dtype" in report.notes
    found = graph(tmp_path / "onnx").graph
    kinds = {value.type.tensor_type.elem_type for value in [*found.input[3:], *found.output]}
    kinds |= {tensor.data_type for tensor in found.initializer if tensor.external_data}
    assert kinds == {onnx.TensorProto.FLOAT16}
    assert json.loads((tmp_path / "onnx" / "config.json").read_text())["dtype"] == "float16"


def test_token_ids_come_from_the_generation_config(hf: Path, tmp_path: Path) -> None:
    (hf / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 3, "eos_token_id": [4, 5], "do_sample": True, "top_p": 0.9, "top_k": 7})
    )
    convert(hf, tmp_path / "onnx", to="onnx", flavor="genai")
    told = json.loads((tmp_path / "onnx" / "genai_config.json").read_text())
    assert {key: told["model"][f"{key}_token_id"] for key in ("bos", "eos", "pad")} == {
        "bos": 3, "eos": [4, 5], "pad": 4,
    }  # fmt: skip
    assert told["search"]["do_sample"] is True
    assert (told["search"]["top_p"], told["search"]["top_k"]) == (0.9, 7)
    assert told["search"]["past_present_share_buffer"] is True
    assert told["model"]["type"] == "llama"


@pytest.mark.parametrize(
    ("changes", "options", "kind", "message"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, {}, UnsupportedConfig, "rope_type 'dynamic' has no"),
        ({}, {"dtype": "float64"}, UnsupportedError, "float64 cannot be computed with in ONNX; pass --dtype"),
        ({}, {"flavor": "cuda"}, UsageError, "unknown flavor 'cuda'; one of std, genai"),
        ({}, {"to": "hf", "flavor": "std"}, UsageError, "flavor means nothing for hf -> hf; it is an option of onnx"),
        ({}, {"to": "nemo2", "pack": True}, UsageError, "pack means nothing for hf -> nemo2; it is an option of onnx"),
        ({}, {"tensor_parallel_size": 2}, NemoconvError, "has no parallel layout"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    tiny.write(tmp_path / "hf", **changes)
    with pytest.raises(kind, match=message):
        convert(tmp_path / "hf", tmp_path / "onnx", **{"to": "onnx", **options})
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_an_architecture_without_a_graph_is_refused_by_name(tmp_path: Path) -> None:
    config = {
        "model_type": "falcon", "num_hidden_layers": 2, "hidden_size": 32, "ffn_hidden_size": 48,
        "num_attention_heads": 4, "vocab_size": 64, "max_position_embeddings": 64,
    }  # fmt: skip
    samples.build(tmp_path / "hf", config)
    with pytest.raises(
        UnsupportedArchitecture, match="no ONNX graph for 'falcon': it has parts that no block"
    ):
        convert(tmp_path / "hf", tmp_path / "onnx", to="onnx")


def test_without_the_package_the_extra_is_named(
    hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(
        UsageError, match=r"writing ONNX needs the package onnx; pip install 'nemoconv\[onnx\]'"
    ):
        convert(hf, tmp_path / "onnx", to="onnx")
    assert not (tmp_path / "onnx").exists()


class TestInPlace:
    def test_adds_two_files_and_touches_no_other(self, hf: Path, tmp_path: Path) -> None:
        before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in hf.iterdir()}
        report = add_graph(hf)
        after = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in hf.iterdir()}
        assert after.keys() == before.keys() | GRAPH
        assert all(after[name] == before[name] for name in before)
        assert report.write_nbytes == sum((hf / name).stat().st_size for name in GRAPH)
        convert(hf, tmp_path / "onnx", to="onnx")
        assert referenced(hf) == referenced(tmp_path / "onnx")
        assert verify(hf, tmp_path / "onnx").equal
        onnx.checker.check_model(hf / "model.onnx", full_check=True)

    def test_refers_to_whatever_shards_there_are(self, tmp_path: Path) -> None:
        held = tiny.write(tmp_path / "hf", shards=3)
        add_graph(tmp_path / "hf", flavor="genai")
        assert referenced(tmp_path / "hf") == {n: (a.shape, a.tobytes()) for n, a in held.items()}

    def test_dry_run_adds_nothing(self, hf: Path) -> None:
        before = files(hf)
        assert add_graph(hf, dry_run=True).files == 2
        assert files(hf) == before

    def test_a_graph_that_is_there_stays_unless_told_otherwise(self, hf: Path) -> None:
        add_graph(hf)
        first = files(hf)
        for dry_run in (False, True):
            with pytest.raises(OutputError, match=r"model.onnx: exists already|genai_config.json: exists"):
                add_graph(hf, flavor="genai", dry_run=dry_run)
        assert files(hf) == first
        add_graph(hf, flavor="genai", overwrite=True)
        second = files(hf)
        assert {name for name in second if second[name] != first[name]} == GRAPH
        assert first.keys() == second.keys()

    def test_links_are_refused_with_a_way_out(self, hf: Path, tmp_path: Path) -> None:
        weights = hf / "model.safetensors"
        os.link(weights, tmp_path / "second")
        with pytest.raises(UnsafeCheckpoint, match=r"is hard-linked.*nemoconv hf2onnx .* OUT"):
            add_graph(hf)
        weights.unlink()
        snapshot = tmp_path / "models--a--b" / "snapshots" / "1"
        (tmp_path / "models--a--b" / "blobs").mkdir(parents=True)
        snapshot.mkdir(parents=True)
        os.rename(tmp_path / "second", tmp_path / "models--a--b" / "blobs" / "0")
        (snapshot / "model.safetensors").symlink_to("../../blobs/0")
        (snapshot / "config.json").write_bytes((hf / "config.json").read_bytes())
        with pytest.raises(UnsafeCheckpoint, match=r"is a link, as in the hub's cache.*hf2onnx .* OUT"):
            add_graph(snapshot)
        assert {path.name for path in snapshot.iterdir()} == {"model.safetensors", "config.json"}
        convert(snapshot, tmp_path / "onnx", to="onnx")

    def test_other_formats_are_refused(self, hf: Path, tmp_path: Path) -> None:
        convert(hf, tmp_path / "nemo", to="nemo2")
        with pytest.raises(UnsupportedFormat, match="Hugging Face directories only, this is nemo2"):
            add_graph(tmp_path / "nemo")

    def test_tensors_are_checked_as_in_a_conversion(self, tmp_path: Path) -> None:
        arrays = tiny.tensors(tiny.CONFIG)
        del arrays["model.norm.weight"]
        tiny.write(tmp_path / "hf", arrays=arrays)
        with pytest.raises(MappingError, match=r"model\.norm\.weight"):
            add_graph(tmp_path / "hf")
        tiny.write(tmp_path / "wrong", arrays=tiny.tensors({**tiny.CONFIG, "vocab_size": 41}))
        with pytest.raises(CorruptCheckpoint, match=r"has shape \[41, 16\]"):
            add_graph(tmp_path / "wrong")
        assert not (tmp_path / "hf" / "model.onnx").exists()

    @pytest.mark.parametrize("overwrite", [False, True])
    @pytest.mark.parametrize("when", [0, 1, 2, 3])
    def test_a_failure_leaves_what_was_there(
        self, hf: Path, monkeypatch: pytest.MonkeyPatch, when: int, overwrite: bool
    ) -> None:
        if overwrite:
            add_graph(hf)
        before, calls = files(hf), iter(range(100))

        def failing(call: Any) -> Any:
            def wrapped(*arguments: Any) -> Any:
                if next(calls) == when:
                    raise OSError(28, "No space left on device")
                return call(*arguments)

            return wrapped

        for name in ("_write_new", "_put"):
            monkeypatch.setattr(output, name, failing(getattr(output, name)))
        with pytest.raises(OutputError, match="No space left on device"):
            add_graph(hf, flavor="genai", overwrite=overwrite)
        assert files(hf) == before

    def test_a_manifest_beside_it_still_holds(self, hf: Path, tmp_path: Path) -> None:
        convert(hf, tmp_path / "written", to="hf")
        add_graph(tmp_path / "written")
        assert verify(tmp_path / "written").equal


class TestCommandLine:
    @staticmethod
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "nemoconv", *map(str, arguments), "--no-progress"]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    def test_export_and_graph_in_place(self, hf: Path, tmp_path: Path) -> None:
        written = self.run("hf2onnx", hf, tmp_path / "onnx", "--flavor", "genai", "--verify")
        assert written.returncode == 0, written.stderr
        assert written.stdout.startswith(f"wrote {tmp_path / 'onnx'} (hf -> onnx, llama")
        added = self.run("convert", hf, "--to", "onnx", "--in-place", "--json")
        assert added.returncode == 0, added.stderr
        assert json.loads(added.stdout)["notes"] == ["the weights stay where they are"]
        assert referenced(hf) == referenced(tmp_path / "onnx")
        again = self.run("hf2onnx", hf, "--in-place")
        assert (again.returncode, again.stdout) == (6, "")
        assert "exists already; pass --overwrite to replace it" in again.stderr

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["hf2onnx", "{hf}"], "Missing argument 'OUT'"),
            (["hf2onnx", "{hf}", "{tmp}/o", "--in-place"], "--in-place writes into SRC: leave out OUT"),
            (["convert", "{hf}", "--to", "hf", "--in-place"], "--in-place adds an ONNX graph"),
            (["hf2onnx", "{hf}", "--in-place", "--dtype", "float32", "--tp", "2"],
             "--in-place leaves the weights alone: leave out dtype, tensor_parallel_size"),
            (["hf2onnx", "{hf}", "--in-place", "--pack"], "leave out pack"),
        ],
    )  # fmt: skip
    def test_contradictions_are_usage_errors(
        self, hf: Path, tmp_path: Path, arguments: list[str], message: str
    ) -> None:
        before = files(hf)
        found = self.run(*(argument.format(hf=hf, tmp=tmp_path) for argument in arguments))
        assert found.returncode == 2
        assert message in found.stderr
        assert files(hf) == before
        assert not (tmp_path / "o").exists()


def test_multi_token_prediction_has_no_graph(tmp_path: Path) -> None:
    config = {
        "model_type": "glm4_moe",
        "architectures": ["Glm4MoeForCausalLM"],
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 67,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "num_nextn_predict_layers": 1,
    }
    samples.build(tmp_path / "hf", config)
    with pytest.raises(UnsupportedConfig, match="1 layers that predict further tokens have no ONNX graph"):
        convert(tmp_path / "hf", tmp_path / "out", to="onnx")
    assert not (tmp_path / "out").exists()
    convert(tmp_path / "hf", tmp_path / "out", to="onnx", allow_ignored=["num_nextn_predict_layers"])
    assert not any(".layers.2." in name for name in load(tmp_path / "out" / "model.onnx"))


def load(path: Path) -> list[str]:
    """The names of initializers."""
    return [entry.name for entry in onnx.load(path, load_external_data=False).graph.initializer]
