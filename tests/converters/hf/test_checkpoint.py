"""Hugging Face directories: whole ones convert to the bit, anything odd is refused by name."""

from __future__ import annotations

import json
import os
import shutil
import struct

import numpy
import pytest
import tiny

import nemoconv
from nemoconv.converters.run.convert import convert
from nemoconv.errors import (
    CorruptCheckpoint,
    MappingError,
    NemoconvError,
    UnsafeCheckpoint,
    UnsupportedArchitecture,
    UnsupportedConfig,
    UnsupportedFormat,
    UsageError,
)

INDEX = "model.safetensors.index.json"
SHARD = "model-{:05d}-of-00003.safetensors"


@pytest.fixture
def model(tmp_path):
    tiny.write(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def sharded(tmp_path):
    tiny.write(tmp_path / "model", shards=3)
    return tmp_path / "model"


def refused(model, kind, code, *, to="hf", **options):
    """The message (without the model's path) with which a conversion is refused; nothing is written."""
    out = model.parent / "out"
    with pytest.raises(NemoconvError) as caught:
        convert(model, out, to=to, **options)
    assert type(caught.value) is kind
    assert caught.value.exit_code == code
    assert "\n" not in str(caught.value)
    assert not [name for name in os.listdir(model.parent) if "out" in name]
    return caught.value.message.replace(str(model), "MODEL")


def set_config(model, remove=(), **changes):
    path = model / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if k not in remove}))


def edit_index(model, edit):
    path = model / INDEX
    index = json.loads(path.read_text())
    edit(index["weight_map"])
    path.write_text(json.dumps(index))


# --- what converts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        {"num_key_value_heads": 4, "head_dim": 4, "vocab_size": 37},
        {"num_key_value_heads": 1},
    ],
    ids=["plain", "attention", "mlp", "both tied", "mha odd", "mqa"],
)
def test_there_and_back_again(tmp_path, changes, dtype):
    """Through NeMo 2 in two layouts: all bits, NaNs with payloads and -0.0 too."""
    arrays = tiny.write(tmp_path / "a", shards=2, dtype=dtype, torch_dtype=dtype, **changes)
    tp = 1 if changes.get("num_key_value_heads") == 1 else 2
    convert(tmp_path / "a", tmp_path / "b", to="nemo2", tensor_parallel_size=tp, pipeline_parallel_size=2)
    convert(tmp_path / "b", tmp_path / "c", to="nemo2")
    convert(tmp_path / "c", tmp_path / "d", to="hf")
    found = tiny.load(tmp_path / "d")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert numpy.array_equal(found[name], array), name
    config = json.loads((tmp_path / "d" / "config.json").read_text())
    original = json.loads((tmp_path / "a" / "config.json").read_text())
    assert original.items() <= config.items()


def test_many_shards(sharded, tmp_path):
    arrays = tiny.tensors(tiny.CONFIG)
    convert(sharded, tmp_path / "out", to="hf", max_shard_nbytes=2000)
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    shards = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 8
    assert shards == [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    assert set(index["weight_map"]) == set(arrays)
    assert set(index["weight_map"].values()) == set(shards)
    total = sum(array.nbytes for array in arrays.values())
    assert index["metadata"] == {"total_parameters": total // 2, "total_size": total}
    for name in shards:
        held = [n for n, shard in index["weight_map"].items() if shard == name]
        assert sum(arrays[n].nbytes for n in held) <= 2000 or len(held) == 1
    found = tiny.load(tmp_path / "out")
    assert all(numpy.array_equal(found[name], array) for name, array in arrays.items())
    convert(tmp_path / "out", tmp_path / "one", to="hf")
    assert not (tmp_path / "one" / INDEX).exists()
    found = tiny.load(tmp_path / "one")
    assert all(numpy.array_equal(found[name], array) for name, array in arrays.items())


def test_transformers_loads_many_shards(sharded, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    convert(sharded, tmp_path / "out", to="hf", max_shard_nbytes=2000)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    arrays = tiny.tensors(tiny.CONFIG)
    for name, tensor in loaded.state_dict().items():
        bits = tensor.contiguous().view(torch.int16).numpy().view(numpy.uint16)
        assert numpy.array_equal(bits, arrays[name]), name


def test_tokenizer_files_are_carried_and_nothing_else(model, tmp_path):
    (model / "tokenizer.json").write_bytes(b'{"a": "\xc3\xa9"}')
    (model / "chat_template.jinja").write_text("{{ 1/0 }}")
    (model / "generation_config.json").write_text('{"top_p": 0.9}')
    (model / "modeling_evil.py").write_text("raise SystemExit")
    (model / "pytorch_model.bin").write_bytes(b"pickle")
    convert(model, tmp_path / "out", to="hf")
    assert sorted(os.listdir(tmp_path / "out")) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "nemoconv_manifest.json",
        "tokenizer.json",
    ]
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (model / name).read_bytes()


def test_a_hub_cache_end_to_end(tmp_path):
    """Every file of a snapshot is a link into blobs; that is how most models lie on disks."""
    arrays = tiny.write(tmp_path / "plain", shards=2)
    (tmp_path / "plain" / "tokenizer.json").write_text("{}")
    repo = tmp_path / "models--org--tiny"
    (repo / "blobs").mkdir(parents=True)
    snapshot = repo / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted((tmp_path / "plain").iterdir())):
        shutil.move(path, repo / "blobs" / f"{number:064x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:064x}")
    convert(snapshot, tmp_path / "nemo", to="nemo2")
    convert(tmp_path / "nemo", tmp_path / "out", to="hf")
    found = tiny.load(tmp_path / "out")
    assert all(numpy.array_equal(found[name], array) for name, array in arrays.items())
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


def test_inv_freq_is_ignored(model, tmp_path):
    arrays = tiny.tensors(tiny.CONFIG)
    more = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": tiny.bits((4,), "bfloat16", n) for n in (0, 1)}
    tiny.save(model / "model.safetensors", {**arrays, **more})
    convert(model, tmp_path / "out", to="hf")
    assert tiny.load(tmp_path / "out").keys() == arrays.keys()
    more = {"model.layers.2.self_attn.rotary_emb.inv_freq": tiny.bits((4,), "bfloat16", 0)}
    tiny.save(model / "model.safetensors", {**arrays, **more})
    shutil.rmtree(tmp_path / "out")
    assert "inv_freq" in refused(model, MappingError, 5)


# --- tied embeddings -------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["hf", "nemo2"])
def test_a_tied_model_that_holds_an_equal_copy(tmp_path, to):
    config = {**tiny.CONFIG, "tie_word_embeddings": True}
    arrays = tiny.tensors(config)
    copy = {**arrays, "lm_head.weight": arrays["model.embed_tokens.weight"]}
    tiny.write(tmp_path / "model", config, arrays=copy)
    report = convert(tmp_path / "model", tmp_path / "out", to=to)
    note = "lm_head.weight equals model.embed_tokens.weight, to which the config ties it, and is left out"
    assert note in report.notes
    if to == "hf":
        assert tiny.load(tmp_path / "out").keys() == arrays.keys()


@pytest.mark.parametrize("index", [(0, 0), (39, 15), (20, 7)])
def test_a_tied_model_whose_copy_differs_in_one_bit(tmp_path, index):
    config = {**tiny.CONFIG, "tie_word_embeddings": True}
    arrays = tiny.tensors(config)
    other = arrays["model.embed_tokens.weight"].copy()
    other[index] ^= 1
    tiny.write(tmp_path / "model", config, arrays={**arrays, "lm_head.weight": other})
    message = refused(tmp_path / "model", MappingError, 5)
    start = "MODEL: the config ties lm_head.weight to model.embed_tokens.weight, but at "
    assert message.startswith(f"{start}{list(index)} one holds ")


def test_a_tied_model_whose_copy_has_another_shape(tmp_path):
    config = {**tiny.CONFIG, "tie_word_embeddings": True}
    arrays = tiny.tensors(config)
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"][:-1].copy()
    tiny.write(tmp_path / "model", config, arrays=arrays)
    assert refused(tmp_path / "model", MappingError, 5).endswith("but their shapes or dtypes differ")


def test_an_untied_model_without_lm_head(tmp_path):
    arrays = tiny.tensors(tiny.CONFIG)
    del arrays["lm_head.weight"]
    tiny.write(tmp_path / "model", arrays=arrays)
    assert refused(tmp_path / "model", MappingError, 5) == (
        "MODEL: 1 tensors that 'llama' needs are missing: lm_head.weight"
    )


# --- shards and index ------------------------------------------------------------------------------


def test_a_missing_shard(sharded):
    (sharded / SHARD.format(2)).unlink()
    assert refused(sharded, CorruptCheckpoint, 3) == (f"MODEL: 1 of 3 shards are missing: {SHARD.format(2)}")


def test_a_shard_of_another_model(sharded):
    shutil.copy(sharded / SHARD.format(1), sharded / SHARD.format(2))
    message = refused(sharded, CorruptCheckpoint, 3)
    assert message == "MODEL: tensor 'model.embed_tokens.weight' lies in two shards"
    (sharded / SHARD.format(1)).unlink()
    tiny.save(sharded / SHARD.format(1), {"other": tiny.bits((3,), "bfloat16", 0)})
    message = refused(sharded, CorruptCheckpoint, 3)
    assert message == f"MODEL/{SHARD.format(1)}: holds 'other', which {INDEX} places in 'no file'"


def test_an_index_that_places_tensors_elsewhere(sharded):
    edit_index(sharded, lambda m: m.update({"lm_head.weight": SHARD.format(1)}))
    message = refused(sharded, CorruptCheckpoint, 3)
    assert f"holds 'lm_head.weight', which {INDEX} places in '{SHARD.format(1)}'" in message


def test_an_unlisted_tensor(sharded):
    edit_index(sharded, lambda m: m.pop("model.norm.weight"))
    message = refused(sharded, CorruptCheckpoint, 3)
    assert message.endswith(f"holds 'model.norm.weight', which {INDEX} places in 'no file'")


def test_a_tensor_in_no_shard(sharded):
    edit_index(sharded, lambda m: m.update({"ghost": SHARD.format(1)}))
    assert refused(sharded, CorruptCheckpoint, 3) == f"MODEL: 1 tensors of {INDEX} are in no shard: ghost"


def test_a_duplicate_key_in_the_index(sharded):
    text = (sharded / INDEX).read_text()
    (sharded / INDEX).write_text(
        text.replace('{"weight_map": {', '{"weight_map": {"lm_head.weight": "x", ', 1)
    )
    assert refused(sharded, CorruptCheckpoint, 3) == f"MODEL/{INDEX}: the key 'lm_head.weight' appears twice"


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "../nothing", "/nothing", "a/../../x", "..", "a\0b", ""]
)
def test_an_index_that_leads_elsewhere(sharded, name):
    """Whether the file exists or not: the answer must not tell."""
    tiny.save(sharded.parent / "secret.safetensors", {"x": tiny.bits((3,), "bfloat16", 0)})
    edit_index(sharded, lambda m: m.update({"x": name}))
    message = refused(sharded, UnsafeCheckpoint, 4)
    assert message.startswith("MODEL: refers to the file ")
    assert message.endswith(", which is not a plain relative name")


def test_a_shard_that_is_a_link_to_elsewhere(sharded):
    tiny.save(sharded.parent / "secret.safetensors", {"x": tiny.bits((3,), "bfloat16", 0)})
    (sharded / SHARD.format(2)).unlink()
    (sharded / SHARD.format(2)).symlink_to("../secret.safetensors")
    message = refused(sharded, UnsafeCheckpoint, 4)
    assert (
        message
        == f"MODEL/{SHARD.format(2)}: leads outside the checkpoint, to {sharded.parent}/secret.safetensors"
    )


def test_a_tokenizer_that_is_a_link_to_a_secret(model):
    (model.parent / "secret").write_text("secret")
    (model / "tokenizer.json").symlink_to("../secret")
    assert "leads outside the checkpoint" in refused(model, UnsafeCheckpoint, 4)


@pytest.mark.parametrize(
    "index", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": null}}']
)
def test_an_index_that_is_none(sharded, index):
    (sharded / INDEX).write_text(index)
    assert refused(sharded, CorruptCheckpoint, 3) == (
        f"MODEL/{INDEX}: has no weight_map of tensor names to files"
    )


def test_an_empty_index(sharded):
    (sharded / INDEX).write_text('{"weight_map": {}}')
    assert "tensors that 'llama' needs are missing" in refused(sharded, MappingError, 5)


def test_shards_without_an_index(sharded):
    (sharded / INDEX).unlink()
    names = ", ".join(SHARD.format(n) for n in (1, 2, 3))
    assert refused(sharded, CorruptCheckpoint, 3) == (
        f"MODEL: has {names} but neither model.safetensors nor {INDEX}"
    )


def test_pickles_only(model):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert refused(model, UnsupportedFormat, 5) == (
        "MODEL: the weights are pickles (pytorch_model.bin), which can run code when loaded"
    )


def test_no_weights_at_all(model):
    (model / "model.safetensors").unlink()
    assert refused(model, CorruptCheckpoint, 3) == (
        f"MODEL: has config.json but no model.safetensors and no {INDEX}"
    )


def test_a_git_lfs_pointer(model):
    (model / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n"
    )
    assert refused(model, CorruptCheckpoint, 3) == (
        "MODEL/model.safetensors: is a Git LFS pointer, not the file itself"
    )


@pytest.mark.parametrize("change", [-1, 1, -500])
def test_a_shard_of_another_length(sharded, change):
    path = sharded / SHARD.format(3)
    os.truncate(path, path.stat().st_size + change)
    assert f"MODEL/{SHARD.format(3)}: " in refused(sharded, CorruptCheckpoint, 3)


# --- config ----------------------------------------------------------------------------------------


def test_no_config(model):
    (model / "config.json").unlink()
    assert refused(model, CorruptCheckpoint, 3) == "MODEL/config.json: missing"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "MODEL/config.json: holds a list, not an object"),
        ("{", "MODEL/config.json: not JSON: "),
        ('{"hidden_size": 1, "hidden_size": 2}', "MODEL/config.json: the key 'hidden_size' appears twice"),
    ],
)
def test_a_config_that_is_none(model, text, message):
    (model / "config.json").write_text(text)
    assert refused(model, CorruptCheckpoint, 3).startswith(message)


@pytest.mark.parametrize(
    "spelling", ["NaN", "Infinity", '{"__float__": "NaN"}', '{"__float__": "-Infinity"}']
)
def test_a_number_that_json_does_not_have_is_read_and_judged_by_its_key(model, tmp_path, spelling):
    text = (model / "config.json").read_text().rstrip().removesuffix("}")
    (model / "config.json").write_text(text + f', "never_read": [0, {spelling}]}}')
    report = convert(model, tmp_path / "nemo", to="nemo2")
    assert [note for note in report.notes if "never_read" in note and "carried along" in note]
    convert(tmp_path / "nemo", tmp_path / "back", to="hf")
    told = json.loads((tmp_path / "back" / "config.json").read_text())["never_read"]
    assert told == [0, {"__float__": spelling.removeprefix('{"__float__": ').strip('"}')}]
    (model / "config.json").write_text(text + f', "rope_theta": {spelling}}}')
    set_config(model, ["never_read"])
    assert "rope_theta" in refused(model, UnsupportedConfig, 5)


def test_quantized_weights_and_remote_code(model):
    set_config(model, quantization_config={"quant_method": "fp8"})
    assert (
        refused(model, UnsupportedConfig, 5)
        == "MODEL/config.json: quantization_config says fp8, but no tensor is quantized"
    )
    set_config(model, quantization_config={"quant_method": "awq"})
    assert refused(model, UnsupportedConfig, 5) == (
        "MODEL/config.json: quantization_config is set: the weights are quantized by 'awq', which is not "
        "supported"
    )
    set_config(model, ["quantization_config"], auto_map={"AutoModel": "evil.Evil"})
    assert refused(model, UnsupportedConfig, 5) == (
        "MODEL/config.json: auto_map is set: the model brings code of its own, which is never run"
    )


def test_refused_keys_that_are_null_are_no_reason(model, tmp_path):
    set_config(model, quantization_config=None, auto_map=None)
    convert(model, tmp_path / "out", to="hf")


def test_unknown_keys(model, tmp_path):
    set_config(model, sliding_window=4096)
    assert refused(model, UnsupportedConfig, 5) == (
        "config.json has 1 key(s) that may change what the model computes: sliding_window"
    )
    report = convert(model, tmp_path / "out", to="hf", allow_ignored=["sliding_window"])
    assert report.ignored_keys == ["sliding_window"]
    manifest = json.loads((tmp_path / "out" / "nemoconv_manifest.json").read_text())
    assert manifest["ignored_config_keys"] == ["sliding_window"]
    assert "sliding_window" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_another_architecture(model):
    set_config(model, model_type="frob")
    assert refused(model, UnsupportedArchitecture, 5) == "no mapping table for the architecture 'frob'"


@pytest.mark.parametrize("to", ["hf", "nemo2"])
@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"vocab_size": 41}, "embed_tokens"),
        ({"vocab_size": 39}, "embed_tokens"),
        ({"hidden_size": 32}, "embed_tokens"),
        ({"intermediate_size": 20}, "mlp"),
        ({"num_attention_heads": 8}, "self_attn.q_proj"),
        ({"num_key_value_heads": 4}, "self_attn.k_proj"),
        ({"head_dim": 4}, "self_attn.q_proj"),
    ],
)
def test_shapes_that_contradict_the_config(model, changes, name, to):
    set_config(model, **changes)
    message = refused(model, CorruptCheckpoint, 3, to=to)
    assert name in message
    assert "the config asks for" in message
    assert "has shape" in message


def test_the_heads_can_be_confused_only_where_shapes_say_nothing(model):
    """4 heads of 8 and 8 heads of 4 have the same q; k and v tell them apart."""
    set_config(model, num_attention_heads=8, head_dim=4)
    assert "k_proj" in refused(model, CorruptCheckpoint, 3)


@pytest.mark.parametrize("layers", [1, 3])
def test_another_number_of_layers(model, layers):
    set_config(model, num_hidden_layers=layers)
    message = refused(model, MappingError, 5)
    if layers == 1:
        assert message.startswith("MODEL: 9 tensors have no rule in the 'llama' table: model.layers.1.")
    else:
        assert message.startswith("MODEL: 9 tensors that 'llama' needs are missing: model.layers.2.")


def test_a_missing_tensor_and_one_too_many(model):
    arrays = tiny.tensors(tiny.CONFIG)
    gone = arrays.pop("model.layers.1.mlp.up_proj.weight")
    tiny.save(model / "model.safetensors", arrays)
    assert refused(model, MappingError, 5) == (
        "MODEL: 1 tensors that 'llama' needs are missing: model.layers.1.mlp.up_proj.weight"
    )
    tiny.save(
        model / "model.safetensors", {**arrays, "model.layers.1.mlp.up_proj.weight": gone, "extra": gone}
    )
    assert refused(model, MappingError, 5) == "MODEL: 1 tensors have no rule in the 'llama' table: extra"


def test_biases_that_the_config_does_not_mention(model):
    tiny.write(model, attention_bias=True)
    set_config(model, attention_bias=False)
    assert "8 tensors have no rule" in refused(model, MappingError, 5)
    set_config(model, attention_bias=True, mlp_bias=True)
    assert "6 tensors that 'llama' needs are missing" in refused(model, MappingError, 5)


def test_parts_of_different_dtypes(model):
    arrays = tiny.tensors(tiny.CONFIG)
    name = "model.layers.0.self_attn.k_proj.weight"
    data = {n: a for n, a in arrays.items() if n != name}
    tiny.save(model / SHARD.format(1), data)
    tiny.save(model / SHARD.format(2), {name: tiny.bits(arrays[name].shape, "float32", 0)}, "float32")
    (model / "model.safetensors").unlink()
    weight_map = {**dict.fromkeys(data, SHARD.format(1)), name: SHARD.format(2)}
    (model / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    message = refused(model, MappingError, 5, to="nemo2")
    assert "have different dtypes: bfloat16, float32" in message
    assert name in message


def test_hostile_names_are_escaped(model):
    header = {"evil\x1b[2J\n": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}
    text = json.dumps(header).encode()
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\0")
    message = refused(model, MappingError, 5)
    assert "evil\\x1b[2J\\n" in message
    assert "\x1b" not in message


# --- reading ---------------------------------------------------------------------------------------


def test_open_and_read(model):
    arrays = tiny.tensors(tiny.CONFIG)
    with nemoconv.open(model) as checkpoint:
        assert set(checkpoint.keys()) == set(arrays)
        for name, array in arrays.items():
            assert checkpoint.spec(name).shape == array.shape
            assert numpy.array_equal(checkpoint.read(name).view(numpy.uint16), array)
        name = "model.embed_tokens.weight"
        part = checkpoint.read(name, (slice(3, 9), 5))
        assert numpy.array_equal(part.view(numpy.uint16), arrays[name][3:9, 5])
        assert checkpoint.read(name, (-1,)).shape == (16,)
        assert checkpoint.read(name, (slice(5, 5),)).shape == (0, 16)
        for index, message in (
            ((40,), "index 40 is outside an axis of length 40"),
            ((slice(0, 4, 2),), "only slices with step 1 can be read"),
            ((0, 0, 0), "has 2 axes, the index 3"),
        ):
            with pytest.raises(ValueError, match=message):
                checkpoint.read(name, index)
        with pytest.raises(KeyError):
            checkpoint.spec("nothing")


@pytest.mark.parametrize(
    "wrong",
    [
        {"tensor_parallel_size": 0},
        {"tensor_parallel_size": "2"},
        {"pipeline_parallel_size": -1},
        {"expert_parallel_size": 1.0},
        {"max_shard_nbytes": 0},
        {"make_vocab_size_divisible_by": 0},
    ],
    ids=str,
)
def test_sizes_that_are_none(model, tmp_path, wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(UsageError, match=f"^{name}={value!r} is not a positive number$"):
        convert(model, tmp_path / "out", to="hf" if name == "max_shard_nbytes" else "nemo2", **wrong)


# --- verify ----------------------------------------------------------------------------------------


def test_every_flipped_bit_of_the_weights_is_noticed(model, tmp_path):
    convert(model, tmp_path / "out", to="hf")
    path = tmp_path / "out" / "model.safetensors"
    data = path.read_bytes()
    base = 8 + struct.unpack("<Q", data[:8])[0]
    random = numpy.random.default_rng(0)
    for at in (base, len(data) - 1, *random.integers(base, len(data), 30)):
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :])
        with pytest.raises(CorruptCheckpoint, match="has checksum .*, the manifest says"):
            nemoconv.verify(tmp_path / "out")
    path.write_bytes(data)
    nemoconv.verify(tmp_path / "out")


def test_two_names_swapped_in_a_header_are_noticed(model, tmp_path):
    """Every payload still has its checksum, and every shape its place; only the names moved."""
    convert(model, tmp_path / "out", to="hf")
    path = tmp_path / "out" / "model.safetensors"
    data = path.read_bytes()
    a, b = b"layers.0.mlp.gate_proj.weight", b"layers.1.mlp.gate_proj.weight"
    path.write_bytes(data.replace(a, b"#" * len(a)).replace(b, a).replace(b"#" * len(a), b))
    with pytest.raises(CorruptCheckpoint) as caught:
        nemoconv.verify(tmp_path / "out")
    assert f"{path}: what is not tensors has checksum " in caught.value.message


@pytest.mark.parametrize("to", ["hf", "nemo2"])
def test_every_file_of_an_output_is_watched(model, tmp_path, to):
    """A flipped bit anywhere, in frames and configs too, fails verify; the manifest watches the rest, and itself."""
    (model / "tokenizer.json").write_text("{}")
    convert(model, tmp_path / "out", to=to)
    random = numpy.random.default_rng(0)
    for path in sorted(p for p in (tmp_path / "out").rglob("*") if p.is_file()):
        data = path.read_bytes()
        end = len(data) - (len(',"crc32":"01234567"}\n') if path.name == "nemoconv_manifest.json" else 0)
        for at in {0, end - 1, *random.integers(0, end, 6).tolist()}:
            path.write_bytes(data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :])
            with pytest.raises(NemoconvError):
                nemoconv.verify(tmp_path / "out")
        path.write_bytes(data)
    nemoconv.verify(tmp_path / "out")


def test_a_manifest_that_somebody_wrote_anew_is_taken_at_its_word(model, tmp_path):
    """Its checksum is of the bytes that we write; whoever edits it has others."""
    convert(model, tmp_path / "out", to="hf")
    path = tmp_path / "out" / "nemoconv_manifest.json"
    path.write_text(path.read_text().replace('"written_by":"nemoconv', '"written_by":"mine'))
    with pytest.raises(CorruptCheckpoint) as caught:
        nemoconv.verify(tmp_path / "out")
    assert caught.value.message == f"{path}: has another checksum than it says"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=1))
    assert nemoconv.verify(tmp_path / "out").manifest


def test_what_verify_says_it_compared(model, tmp_path):
    for to in ("hf", "nemo2"):
        convert(model, tmp_path / to, to=to)
    assert nemoconv.verify(tmp_path / "hf").describe().endswith(" bytes agree with the manifest")
    said = nemoconv.verify(tmp_path / "nemo2").describe()
    assert said.endswith(" bytes agree with the manifest and the file's own checksums")
    (tmp_path / "nemo2" / "nemoconv_manifest.json").unlink()
    assert nemoconv.verify(tmp_path / "nemo2").describe().endswith(" agree with the file's own checksums")
    assert nemoconv.verify(model).describe().endswith("complete; the format holds no checksums")


@pytest.mark.parametrize(
    "edit",
    [
        lambda files: files.update({"model.safetensors": 5}),
        lambda files: files["model.safetensors"].update(size="5"),
        lambda files: files["model.safetensors"].update(tensors=5),
        lambda files: files["model.safetensors"].pop("crc32"),
        lambda files: files["config.json"].update(crc32=5),
        lambda files: files["model.safetensors"].update(tensors=[5]),
        lambda files: files["model.safetensors"].update(tensors=[["a", 0]]),
        lambda files: files["model.safetensors"].update(tensors=[["a", "0", 4, "00000000"]]),
        lambda files: files["model.safetensors"].update(tensors=[["a", -5, 4, "00000000"]]),
        lambda files: files["model.safetensors"].update(tensors=[["a", 0, 1 << 60, "00000000"]]),
        lambda files: files["model.safetensors"].update(tensors=[[5, 0, 4, "00000000"]]),
        lambda files: files.update({"../secret": {"size": 0, "crc32": "00000000"}}),
        lambda files: files.update({"missing": {"size": 0, "crc32": "00000000"}}),
    ],
)
def test_a_manifest_that_is_malformed(model, tmp_path, edit):
    convert(model, tmp_path / "out", to="hf")
    path = tmp_path / "out" / "nemoconv_manifest.json"
    manifest = json.loads(path.read_text())
    edit(manifest["files"])
    path.write_text(json.dumps(manifest))
    with pytest.raises((CorruptCheckpoint, UnsafeCheckpoint)) as caught:
        nemoconv.verify(tmp_path / "out")
    assert "\n" not in str(caught.value)
