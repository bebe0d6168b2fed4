"""NeMo 1 archives of Megatron GPT models: every layout and container gives the same bits."""

from __future__ import annotations

import json
import tarfile

import legacy_nemo as legacy
import numpy
import pytest
import tiny
import yaml

from nemoconv.converters.look.inspect import inspect
from nemoconv.converters.look.verify import verify
from nemoconv.converters.run.convert import convert
from nemoconv.errors import CorruptCheckpoint, MappingError

torch = pytest.importorskip("torch")

# the samples that NeMo 2.4.1 wrote


@pytest.mark.parametrize(
    ("sample", "reference"),
    [
        ("llama_legacy_tp1", "hf_llama_mha"),
        ("llama_legacy_tp2_pp2", "hf_llama_mha"),
        ("llama_mcore_torch_dist", "hf_llama_gqa"),
    ],
)
def test_samples_have_the_bits_they_were_made_of(tmp_path, sample, reference):
    convert(legacy.SAMPLES / f"{sample}.nemo", tmp_path / "hf", to="hf", verify=True)
    legacy.assert_holds(tmp_path / "hf", tiny.load(legacy.SAMPLES / reference))
    assert (tmp_path / "hf" / "tokenizer.model").read_bytes() == (
        legacy.SAMPLES / reference / "tokenizer.model"
    ).read_bytes()
    written, given = (
        json.loads((f / "config.json").read_text()) for f in (tmp_path / "hf", legacy.SAMPLES / reference)
    )
    differing = {key for key in given if written.get(key) != given[key]}
    # token ids and the version are in no .nemo; the script that made the last one turned a scaling on
    expected = {
        "bos_token_id",
        "eos_token_id",
        "transformers_version",
        "use_cache",
        "pretraining_tp",
        "hidden_act",
    }
    assert differing == expected | ({"rope_scaling"} if "mcore" in sample else set())


def test_all_layouts_of_one_model_give_the_same_file(tmp_path):
    for sample in ("llama_legacy_tp1", "llama_legacy_tp2_pp2"):
        convert(legacy.SAMPLES / f"{sample}.nemo", tmp_path / sample, to="hf")
    a, b = (
        (tmp_path / s / "model.safetensors").read_bytes()
        for s in ("llama_legacy_tp1", "llama_legacy_tp2_pp2")
    )
    assert a == b


def test_a_scaling_that_only_megatron_core_reads():
    """scale_positional_embedding is true in all samples; NeMo's own implementation does not look at it."""
    ropes = [
        inspect(legacy.SAMPLES / f"{sample}.nemo")["rope"]
        for sample in ("llama_legacy_tp1", "llama_mcore_torch_dist")
    ]
    assert ropes[0] == "unscaled"
    assert ropes[1]["rope_type"] == "llama3"
    assert ropes[1]["factor"] == 8


def test_a_config_given_instead(tmp_path):
    result = verify(
        legacy.SAMPLES / "llama_mcore_torch_dist.nemo",
        legacy.SAMPLES / "hf_llama_gqa",
        config=legacy.SAMPLES / "hf_llama_gqa",
    )
    assert not result.config_differences
    assert not result.different


# layouts


@pytest.mark.parametrize("mcore", [True, False], ids=["mcore", "own"])
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2), (2, 2), (4, 4)])
def test_every_layout(tmp_path, tp, pp, mcore):
    source, arrays = legacy.build(tmp_path / "x.nemo", tp=tp, pp=pp, mcore=mcore)
    report = convert(source, tmp_path / "hf", to="hf", verify=True)
    assert report.source_format == "nemo"
    assert not any("the config says" in note for note in report.notes)
    legacy.assert_holds(tmp_path / "hf", arrays)
    assert verify(source).equal
    assert inspect(source)["layout"] == f"tp{tp} pp{pp}"


@pytest.mark.parametrize(
    "how",
    [
        {"prefix": "model.module."},
        {"prefix": "model._orig_mod.", "mcore": False},
        {"new": False},
        {"new": False, "tp": 2, "pp": 2, "mcore": False},
        {"pp": 2, "split": (1, 3)},
        {"pp": 3, "split": (2, 1, 1), "tp": 2},
        {"pp": 2, "global_numbers": True},
        {"pp": 2, "virtual": 2},
        {"pp": 2, "virtual": 2, "tp": 2},
        {"mcore": False, "fused": False, "settings": {"activation": "swiglu"}},
        {"mcore": False, "fused": False, "tp": 2, "settings": {"activation": "swiglu"}},
    ],
    ids=str,
)
def test_dialects(tmp_path, how):
    source, arrays = legacy.build(tmp_path / "x.nemo", **how)
    convert(source, tmp_path / "hf", to="hf", verify=True)
    legacy.assert_holds(tmp_path / "hf", arrays)


def test_uneven_stages_are_shown(tmp_path):
    source, _ = legacy.build(tmp_path / "x.nemo", pp=2, split=(1, 3))
    assert inspect(source)["layout"] == "tp1 pp2 stages 1-3"


def test_the_first_names(tmp_path):
    """megatron_legacy's first names: transformer for encoder, attention for self_attention."""
    arrays = tiny.tensors(legacy.CONFIG)
    ((rank, state),) = legacy.states(arrays, legacy.CONFIG, mcore=False).items()
    old = {
        k.replace(".encoder.", ".transformer.").replace("self_attention", "attention"): v
        for k, v in state.items()
    }
    files = legacy.members({rank: old}, legacy.yaml_of(legacy.CONFIG, mcore_gpt=False))
    convert(legacy.pack(tmp_path / "x.nemo", files), tmp_path / "hf", to="hf")
    legacy.assert_holds(tmp_path / "hf", arrays)


@pytest.mark.parametrize("how", ["gzip", "no prefix", "folder", "another name"])
def test_containers(tmp_path, how):
    arrays = tiny.tensors(legacy.CONFIG)
    files = legacy.members(legacy.states(arrays, legacy.CONFIG, tp=2), legacy.yaml_of(legacy.CONFIG))
    if how == "folder":
        source = legacy.unpack(tmp_path / "x", files)
    elif how == "gzip":
        source = legacy.pack(tmp_path / "x.nemo", files, mode="w:gz")
    else:
        name = "x.tar" if how == "another name" else "x.nemo"
        source = legacy.pack(tmp_path / name, files, prefix="" if how == "no prefix" else "./")
    report = convert(source, tmp_path / "hf", to="hf", verify=True)
    legacy.assert_holds(tmp_path / "hf", arrays)
    assert any("inflated" in note for note in report.notes) == (how == "gzip")
    assert verify(source).equal


@pytest.mark.parametrize("mcore", [True, False], ids=["mcore", "own"])
@pytest.mark.parametrize("pp", [1, 2])
def test_tied_embeddings(tmp_path, mcore, pp):
    config = {**legacy.CONFIG, "tie_word_embeddings": True}
    source, arrays = legacy.build(tmp_path / "x.nemo", config, tp=2, pp=pp, mcore=mcore)
    report = convert(source, tmp_path / "hf", to="hf", verify=True)
    legacy.assert_holds(tmp_path / "hf", arrays)
    assert any("output_layer.weight equals" in note for note in report.notes) == (pp == 2)


def test_a_tied_copy_that_differs(tmp_path):
    config = {**legacy.CONFIG, "tie_word_embeddings": True}
    ranks = legacy.states(tiny.tensors(config), config, pp=2)
    copy = ranks[0, 1]["model.output_layer.weight"]
    copy.view(torch.int16)[3, 5] ^= 1
    source = legacy.pack(tmp_path / "x.nemo", legacy.members(ranks, legacy.yaml_of(config)))
    with pytest.raises(MappingError, match=r"\[3, 5\]"):
        convert(source, tmp_path / "hf", to="hf")
    assert not (tmp_path / "hf").exists()


def test_a_norm_that_ranks_disagree_about(tmp_path):
    ranks = legacy.states(tiny.tensors(legacy.CONFIG), legacy.CONFIG, tp=2)
    ranks[1, 0]["model.decoder.final_layernorm.weight"].view(torch.int16)[2] ^= 1
    source = legacy.pack(tmp_path / "x.nemo", legacy.members(ranks, legacy.yaml_of(legacy.CONFIG)))
    report = convert(source, tmp_path / "hf", to="hf")
    assert any("final_layernorm" in note and "rank 0" in note for note in report.notes)
    with pytest.raises(CorruptCheckpoint, match="differently"):
        verify(source)


def test_a_padded_vocabulary_is_cut_to_the_tokenizer(tmp_path):
    """52 rows a rank, of which the tokenizer knows 100; and all of them where it has another size."""
    assert inspect(legacy.SAMPLES / "llama_legacy_tp2_pp2.nemo")["vocabulary"] == {"true": 100, "rows": 104}
    with tarfile.open(legacy.SAMPLES / "llama_legacy_tp2_pp2.nemo") as archive:
        files = {m.name[2:]: archive.extractfile(m).read() for m in archive.getmembers() if m.isfile()}
    settings = yaml.safe_load(files["model_config.yaml"])
    settings["make_vocab_size_divisible_by"] = 128
    files["model_config.yaml"] = yaml.safe_dump(settings).encode()
    changed = legacy.pack(tmp_path / "x.nemo", files)
    assert inspect(changed)["vocabulary"] == {"true": 104, "rows": 104}
    settings["make_vocab_size_divisible_by"] = 4
    settings["tokenizer"]["additional_special_tokens"] = ["<extra>"]
    files["model_config.yaml"] = yaml.safe_dump(settings).encode()
    changed = legacy.pack(tmp_path / "y.nemo", files)
    assert inspect(changed)["vocabulary"] == {"true": 104, "rows": 104}


@pytest.mark.parametrize("grouped", [False, True])
def test_experts_of_ranks(tmp_path, grouped):
    """Mixtral: experts one by one, or TransformerEngine's numbered parameters."""
    config = {
        **legacy.CONFIG, "model_type": "mixtral", "architectures": ["MixtralForCausalLM"],
        "num_local_experts": 2, "num_experts_per_tok": 2, "sliding_window": None, "num_hidden_layers": 2,
    }  # fmt: skip
    del config["head_dim"]
    config["hidden_size"] = 32
    dense = {**legacy.CONFIG, "num_hidden_layers": 2, "hidden_size": 32, "head_dim": 8}
    arrays = {k: v for k, v in tiny.tensors(dense).items() if ".mlp." not in k}
    ranks = legacy.states({**tiny.tensors(dense)}, dense, tp=2)
    for layer in range(2):
        at = f"model.layers.{layer}.block_sparse_moe."
        arrays[at + "gate.weight"] = tiny.bits((2, 32), "bfloat16", 900 + layer)
        for expert in range(2):
            w1, w3 = (tiny.bits((24, 32), "bfloat16", 100 + 10 * layer + expert + s) for s in (0, 40))
            w2 = tiny.bits((32, 24), "bfloat16", 500 + 10 * layer + expert)
            for name, array in (("w1", w1), ("w2", w2), ("w3", w3)):
                arrays[f"{at}experts.{expert}.{name}.weight"] = array
            for rank in range(2):
                halves = [legacy.piece("gate", w, 2, rank) for w in (w1, w3)]
                made = {
                    "linear_fc1": numpy.concatenate(halves),
                    "linear_fc2": legacy.piece("fc2", w2, 2, rank),
                }
                mlp = f"model.decoder.layers.{layer}.mlp."
                for fc, array in made.items():
                    one = (
                        f"experts.{fc}.weight{expert}"
                        if grouped
                        else f"experts.local_experts.{expert}.{fc}.weight"
                    )
                    ranks[rank, 0][mlp + one] = legacy.tensor(array)
                ranks[rank, 0][mlp + "router.weight"] = legacy.tensor(arrays[at + "gate.weight"])
    for state in ranks.values():
        for layer in range(2):
            at = f"model.decoder.layers.{layer}."
            state[at + "pre_mlp_layernorm.weight"] = state.pop(at + "mlp.linear_fc1.layer_norm_weight")
            for fc in ("linear_fc1", "linear_fc2"):
                del state[f"{at}mlp.{fc}.weight"]
    settings = legacy.yaml_of(dense, num_moe_experts=2, moe_router_topk=2)
    source = legacy.pack(tmp_path / "x.nemo", legacy.members(ranks, settings))
    assert inspect(source)["architecture"] == "mixtral"
    convert(source, tmp_path / "hf", to="hf", verify=True)
    legacy.assert_holds(tmp_path / "hf", arrays)
