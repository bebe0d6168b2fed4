"""Writing NeMo 1 archives: there and back, and what the archive says."""

from __future__ import annotations

import json
import shutil
import tarfile

import legacy_nemo as legacy
import numpy
import pytest
import tiny
from click.testing import CliRunner

from nemoconv.cli import main
from nemoconv.converters.look.inspect import inspect
from nemoconv.converters.look.verify import verify
from nemoconv.converters.registry import open_checkpoint
from nemoconv.converters.run.convert import convert, plan
from nemoconv.errors import CorruptCheckpoint, OutputError, UnsupportedArchitecture
from nemoconv.mappings import architectures, samples
from nemoconv.mappings.nemo1.families import FAMILIES

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "model"
    tiny.write(
        folder, {**legacy.CONFIG, "num_key_value_heads": 2}, bos_token_id=1, eos_token_id=2, use_cache=True
    )
    (folder / "tokenizer.json").write_text("{}")
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    return folder


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (2, 2), (1, 4)])
def test_there_and_back(tmp_path, model, tp, pp):
    options = {"tensor_parallel_size": tp, "pipeline_parallel_size": pp}
    report = convert(model, tmp_path / "x.nemo", to="nemo", verify=True, **options)
    assert any("tokenizer.type" in note for note in report.notes)
    assert (tmp_path / "x.nemo").is_file()
    convert(tmp_path / "x.nemo", tmp_path / "hf", to="hf", verify=True)
    legacy.assert_holds(tmp_path / "hf", tiny.load(model))
    back = json.loads((tmp_path / "hf" / "config.json").read_text())
    given = json.loads((model / "config.json").read_text())
    assert {key: back.get(key) for key in given} == given
    for name in ("tokenizer.json", "generation_config.json"):
        assert (tmp_path / "hf" / name).read_bytes() == (model / name).read_bytes()
    health = verify(tmp_path / "x.nemo")
    assert health.manifest
    assert inspect(tmp_path / "x.nemo")["layout"] == f"tp{tp} pp{pp}"


def test_all_pairs_compose(tmp_path, model):
    """{hf, nemo, nemo2} to each other in one step: the weights are the same files, whatever the way."""
    convert(model, tmp_path / "n2", to="nemo2", tensor_parallel_size=2)
    convert(model, tmp_path / "n1.nemo", to="nemo", tensor_parallel_size=2)
    convert(tmp_path / "n1.nemo", tmp_path / "n2_of_n1", to="nemo2", tensor_parallel_size=2, verify=True)
    convert(tmp_path / "n2", tmp_path / "n1_of_n2.nemo", to="nemo", tensor_parallel_size=2, verify=True)
    for name in ("weights/__0_0.distcp", "weights/__1_0.distcp", "weights/.metadata", "context/io.json"):
        assert (tmp_path / "n2" / name).read_bytes() == (tmp_path / "n2_of_n1" / name).read_bytes()
    assert verify(tmp_path / "n1.nemo", tmp_path / "n1_of_n2.nemo").equal
    assert verify(tmp_path / "n1.nemo", tmp_path / "n2").equal
    assert verify(tmp_path / "n1.nemo", model).equal


def test_ranks_to_nemo2_are_bit_equal_to_hf_to_nemo2(tmp_path):
    _, arrays = legacy.build(tmp_path / "x.nemo", tp=2, pp=2, mcore=False)
    tiny.write(tmp_path / "hf", legacy.CONFIG, arrays=arrays)
    for name in ("x.nemo", "hf"):
        convert(tmp_path / name, tmp_path / f"{name}_2", to="nemo2", tensor_parallel_size=2)
    for name in ("__0_0.distcp", "__1_0.distcp", ".metadata"):
        a, b = ((tmp_path / f / "weights" / name).read_bytes() for f in ("x.nemo_2", "hf_2"))
        assert a == b


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": True},
        {"attention_bias": True},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {
            "rope_scaling": {
                "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
        {"vocab_size": 39},
        {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 7},
        {"torch_dtype": "float32"},
    ],
    ids=str,
)  # fmt: skip
def test_models_there_and_back(tmp_path, changes):
    config = {**legacy.CONFIG, **changes}
    dtype = str(config["torch_dtype"])
    arrays = tiny.write(tmp_path / "hf", config, dtype=dtype)
    convert(tmp_path / "hf", tmp_path / "x.nemo", to="nemo", tensor_parallel_size=2, verify=True)
    convert(tmp_path / "x.nemo", tmp_path / "back", to="hf", verify=True)
    legacy.assert_holds(tmp_path / "back", arrays)
    back = json.loads((tmp_path / "back" / "config.json").read_text())
    assert {key: back.get(key) for key in config} == config


def test_without_our_manifest_the_model_is_the_same(tmp_path, model):
    """What somebody else's tool would pass on: nothing but NeMo's own members."""
    convert(model, tmp_path / "x.nemo", to="nemo", tensor_parallel_size=2)
    with tarfile.open(tmp_path / "x.nemo") as archive:
        files = {m.name[2:]: archive.extractfile(m).read() for m in archive.getmembers() if m.isfile()}
    files = {k: v for k, v in files.items() if not k.startswith(("huggingface/", "nemoconv"))}
    convert(legacy.pack(tmp_path / "y.nemo", files), tmp_path / "hf", to="hf")
    legacy.assert_holds(tmp_path / "hf", tiny.load(model))
    assert verify(tmp_path / "hf", model).equal


def test_what_nemo_1_cannot_be_told(tmp_path):
    config = {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "num_hidden_layers": 2}
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    samples.build(tmp_path / "hf", {**config, **sizes, "head_dim": 8, "vocab_size": 40})
    with pytest.raises(UnsupportedArchitecture, match="gemma3_text"):
        convert(tmp_path / "hf", tmp_path / "x.nemo", to="nemo")
    assert not (tmp_path / "x.nemo").exists()


def test_planning_writes_nothing(tmp_path, model):
    report = plan(model, tmp_path / "x.nemo", to="nemo", tensor_parallel_size=2)
    assert report.tensors_out == 9
    assert list(tmp_path.iterdir()) == []


def test_an_archive_that_is_there(tmp_path, model):
    target = tmp_path / "x.nemo"
    target.write_bytes(b"old")
    with pytest.raises(OutputError, match="exists already"):
        convert(model, target, to="nemo")
    assert target.read_bytes() == b"old"
    convert(model, target, to="nemo", overwrite=True)
    assert verify(target).equal


def test_a_changed_byte_is_found(tmp_path, model):
    convert(model, tmp_path / "x.nemo", to="nemo")
    data = bytearray((tmp_path / "x.nemo").read_bytes())
    with open_checkpoint(tmp_path / "x.nemo") as checkpoint:
        extent = checkpoint.stored("decoder.layers.1.mlp.linear_fc2.weight").extents[0]
        at = extent.file.base + extent.offset
    data[at] ^= 1
    (tmp_path / "x.nemo").write_bytes(data)
    with pytest.raises(CorruptCheckpoint, match="checksum"):
        verify(tmp_path / "x.nemo")


def test_the_command_line(tmp_path, model):
    run = CliRunner().invoke
    target, back = str(tmp_path / "x.nemo"), str(tmp_path / "hf")
    done = run(main, ["hf2nemo", str(model), target, "--tp", "2", "--verify", "-q"])
    assert (done.exit_code, done.output) == (0, "")
    assert run(main, ["nemo2hf", target, back, "-q"]).exit_code == 0
    assert run(main, ["verify", back, str(model)]).exit_code == 0
    shown = json.loads(run(main, ["inspect", target, "--json"]).output)
    assert shown["format"] == "nemo"
    refused = run(main, ["nemo2hf", str(tmp_path / "absent.nemo"), back])
    assert refused.exit_code == 2


def test_every_table_that_is_tried_is_there():
    named = [name for family in FAMILIES for name in family.architectures]
    assert set(named) <= set(architectures())
    assert len(set(named)) == len(named)


def test_an_unpacked_archive_of_ours(tmp_path, model):
    convert(model, tmp_path / "x.nemo", to="nemo")
    with tarfile.open(tmp_path / "x.nemo") as archive:
        archive.extractall(tmp_path / "x", filter="data")
    assert verify(tmp_path / "x").manifest
    convert(tmp_path / "x", tmp_path / "hf", to="hf")
    legacy.assert_holds(tmp_path / "hf", tiny.load(model))
    shutil.rmtree(tmp_path / "x")


@pytest.mark.parametrize("tp", [1, 2])
def test_a_plain_gpt_with_learned_positions(tmp_path, tp):
    """NeMo Megatron GPT, as NeMo 1 builds it unless told otherwise: GPT-2, whose matrices are transposed."""
    layers, hidden, heads, vocab, positions = 2, 16, 4, 40, 32
    seeds = iter(range(1000))

    def bits(*shape):
        return tiny.bits(shape, "bfloat16", next(seeds))

    hf = {"transformer.wte.weight": bits(vocab, hidden), "transformer.wpe.weight": bits(positions, hidden)}
    hf |= {f"transformer.ln_f.{kind}": bits(hidden) for kind in ("weight", "bias")}
    own = "model.language_model."
    ranks = {(rank, 0): {} for rank in range(tp)}

    def put(name, array, axis=None):
        for (rank, _), state in ranks.items():
            piece = array if axis is None else numpy.split(array, tp, axis=axis)[rank]
            state[own + name] = legacy.tensor(piece)

    put("embedding.word_embeddings.weight", hf["transformer.wte.weight"], 0)
    put("embedding.position_embeddings.weight", hf["transformer.wpe.weight"])
    for kind in ("weight", "bias"):
        put(f"encoder.final_layernorm.{kind}", hf[f"transformer.ln_f.{kind}"])
    for layer in range(layers):
        a, b = f"transformer.h.{layer}.", f"encoder.layers.{layer}."
        for ours, theirs in (("ln_1", "input_layernorm"), ("ln_2", "post_attention_layernorm")):
            for kind in ("weight", "bias"):
                hf[f"{a}{ours}.{kind}"] = bits(hidden)
                put(f"{b}{theirs}.{kind}", hf[f"{a}{ours}.{kind}"])
        q, k, v = (bits(hidden, hidden) for _ in "qkv")
        biases = [bits(hidden) for _ in "qkv"]
        hf[a + "attn.c_attn.weight"] = numpy.concatenate([q, k, v]).T
        hf[a + "attn.c_attn.bias"] = numpy.concatenate(biases)
        per_head = [m.reshape(heads, hidden // heads, hidden) for m in (q, k, v)]
        put(b + "self_attention.query_key_value.weight", numpy.stack(per_head, axis=1).reshape(-1, hidden), 0)
        per_head = [m.reshape(heads, hidden // heads) for m in biases]
        put(b + "self_attention.query_key_value.bias", numpy.stack(per_head, axis=1).reshape(-1), 0)
        for ours, theirs, shape, axis in (
            ("attn.c_proj", "self_attention.dense", (hidden, hidden), 1),
            ("mlp.c_fc", "mlp.dense_h_to_4h", (4 * hidden, hidden), 0),
            ("mlp.c_proj", "mlp.dense_4h_to_h", (hidden, 4 * hidden), 1),
        ):
            weight, bias = bits(*shape), bits(shape[0])
            hf[f"{a}{ours}.weight"], hf[f"{a}{ours}.bias"] = weight.T, bias
            put(f"{b}{theirs}.weight", weight, axis)
            put(f"{b}{theirs}.bias", bias, 0 if axis == 0 else None)
    settings = {
        "encoder_seq_length": positions, "max_position_embeddings": positions, "num_layers": layers,
        "hidden_size": hidden, "ffn_hidden_size": 4 * hidden, "num_attention_heads": heads,
        "override_vocab_size": vocab, "target": legacy.TARGET,
    }  # fmt: skip
    source = legacy.pack(tmp_path / "x.nemo", legacy.members(ranks, settings))
    convert(source, tmp_path / "hf", to="hf", verify=True)
    assert inspect(source)["architecture"] == "gpt2"
    legacy.assert_holds(tmp_path / "hf", hf)
    written = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert written["activation_function"] == "gelu_new"  # the fused kernel that NeMo 1 takes by default
    convert(tmp_path / "hf", tmp_path / "y.nemo", to="nemo", tensor_parallel_size=tp, verify=True)
    assert verify(source, tmp_path / "y.nemo").equal
