"""NeMo 1 archives of Megatron GPT models: every layout gives the same bits, and what is not one is refused."""

from __future__ import annotations

import io
import json
import random
import shutil
import tarfile
from pathlib import Path

import legacy_nemo as legacy
import numpy
import pytest
import tiny
import yaml
from click.testing import CliRunner

from nemoconv.cli import main
from nemoconv.converters import nemo1_config
from nemoconv.converters.conversion import convert, plan
from nemoconv.converters.inspection import inspect
from nemoconv.converters.registry import open_checkpoint
from nemoconv.converters.verification import verify
from nemoconv.errors import (
    CorruptCheckpoint,
    MappingError,
    NemoconvError,
    OutputError,
    UnsafeCheckpoint,
    UnsupportedArchitecture,
    UnsupportedConfig,
    UnsupportedFormat,
)

torch = pytest.importorskip("torch")
ROOT = Path(__file__).parents[2]
LEGACY = ROOT / "fixtures" / "legacy"

CONFIG = {**tiny.CONFIG, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4}


def equal(folder, arrays):
    held = tiny.load(folder)
    assert held.keys() == arrays.keys()
    for name, array in arrays.items():
        assert numpy.array_equal(held[name], array), name


def build(path, config=CONFIG, *, new=True, settings=None, **how):
    """(the archive, the tensors of the Hugging Face model in it)."""
    arrays = tiny.tensors(config)
    ranks = legacy.states(arrays, config, **how)
    changes = {"mcore_gpt": how.get("mcore", True), **(settings or {})}
    files = legacy.members(ranks, legacy.yaml_of(config, **changes), new=new)
    return legacy.pack(path, files), arrays


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
    convert(LEGACY / f"{sample}.nemo", tmp_path / "hf", to="hf", verify=True)
    equal(tmp_path / "hf", tiny.load(LEGACY / reference))
    assert (tmp_path / "hf" / "tokenizer.model").read_bytes() == (
        LEGACY / reference / "tokenizer.model"
    ).read_bytes()
    written, given = (
        json.loads((f / "config.json").read_text()) for f in (tmp_path / "hf", LEGACY / reference)
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
        convert(LEGACY / f"{sample}.nemo", tmp_path / sample, to="hf")
    a, b = (
        (tmp_path / s / "model.safetensors").read_bytes()
        for s in ("llama_legacy_tp1", "llama_legacy_tp2_pp2")
    )
    assert a == b


def test_a_scaling_that_only_megatron_core_reads():
    """scale_positional_embedding is true in all samples; NeMo's own implementation does not look at it."""
    ropes = [
        inspect(LEGACY / f"{sample}.nemo")["rope"]
        for sample in ("llama_legacy_tp1", "llama_mcore_torch_dist")
    ]
    assert ropes[0] == "unscaled"
    assert ropes[1]["rope_type"] == "llama3"
    assert ropes[1]["factor"] == 8


def test_a_config_given_instead(tmp_path):
    result = verify(
        LEGACY / "llama_mcore_torch_dist.nemo", LEGACY / "hf_llama_gqa", config=LEGACY / "hf_llama_gqa"
    )
    assert not result.config_differences
    assert not result.different


# layouts


@pytest.mark.parametrize("mcore", [True, False], ids=["mcore", "own"])
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2), (2, 2), (4, 4)])
def test_every_layout(tmp_path, tp, pp, mcore):
    source, arrays = build(tmp_path / "x.nemo", tp=tp, pp=pp, mcore=mcore)
    report = convert(source, tmp_path / "hf", to="hf", verify=True)
    assert report.source_format == "nemo"
    assert not any("the config says" in note for note in report.notes)
    equal(tmp_path / "hf", arrays)
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
    source, arrays = build(tmp_path / "x.nemo", **how)
    convert(source, tmp_path / "hf", to="hf", verify=True)
    equal(tmp_path / "hf", arrays)


def test_uneven_stages_are_shown(tmp_path):
    source, _ = build(tmp_path / "x.nemo", pp=2, split=(1, 3))
    assert inspect(source)["layout"] == "tp1 pp2 stages 1-3"


def test_the_first_names(tmp_path):
    """megatron_legacy's first names: transformer for encoder, attention for self_attention."""
    arrays = tiny.tensors(CONFIG)
    ((rank, state),) = legacy.states(arrays, CONFIG, mcore=False).items()
    old = {
        k.replace(".encoder.", ".transformer.").replace("self_attention", "attention"): v
        for k, v in state.items()
    }
    files = legacy.members({rank: old}, legacy.yaml_of(CONFIG, mcore_gpt=False))
    convert(legacy.pack(tmp_path / "x.nemo", files), tmp_path / "hf", to="hf")
    equal(tmp_path / "hf", arrays)


@pytest.mark.parametrize("how", ["gzip", "no prefix", "folder", "another name"])
def test_containers(tmp_path, how):
    arrays = tiny.tensors(CONFIG)
    files = legacy.members(legacy.states(arrays, CONFIG, tp=2), legacy.yaml_of(CONFIG))
    if how == "folder":
        source = legacy.unpack(tmp_path / "x", files)
    elif how == "gzip":
        source = legacy.pack(tmp_path / "x.nemo", files, mode="w:gz")
    else:
        name = "x.tar" if how == "another name" else "x.nemo"
        source = legacy.pack(tmp_path / name, files, prefix="" if how == "no prefix" else "./")
    report = convert(source, tmp_path / "hf", to="hf", verify=True)
    equal(tmp_path / "hf", arrays)
    assert any("inflated" in note for note in report.notes) == (how == "gzip")
    assert verify(source).equal


@pytest.mark.parametrize("mcore", [True, False], ids=["mcore", "own"])
@pytest.mark.parametrize("pp", [1, 2])
def test_tied_embeddings(tmp_path, mcore, pp):
    config = {**CONFIG, "tie_word_embeddings": True}
    source, arrays = build(tmp_path / "x.nemo", config, tp=2, pp=pp, mcore=mcore)
    report = convert(source, tmp_path / "hf", to="hf", verify=True)
    equal(tmp_path / "hf", arrays)
    assert any("output_layer.weight equals" in note for note in report.notes) == (pp == 2)


def test_a_tied_copy_that_differs(tmp_path):
    config = {**CONFIG, "tie_word_embeddings": True}
    ranks = legacy.states(tiny.tensors(config), config, pp=2)
    copy = ranks[0, 1]["model.output_layer.weight"]
    copy.view(torch.int16)[3, 5] ^= 1
    source = legacy.pack(tmp_path / "x.nemo", legacy.members(ranks, legacy.yaml_of(config)))
    with pytest.raises(MappingError, match=r"\[3, 5\]"):
        convert(source, tmp_path / "hf", to="hf")
    assert not (tmp_path / "hf").exists()


def test_a_norm_that_ranks_disagree_about(tmp_path):
    ranks = legacy.states(tiny.tensors(CONFIG), CONFIG, tp=2)
    ranks[1, 0]["model.decoder.final_layernorm.weight"].view(torch.int16)[2] ^= 1
    source = legacy.pack(tmp_path / "x.nemo", legacy.members(ranks, legacy.yaml_of(CONFIG)))
    report = convert(source, tmp_path / "hf", to="hf")
    assert any("final_layernorm" in note and "rank 0" in note for note in report.notes)
    with pytest.raises(CorruptCheckpoint, match="differently"):
        verify(source)


def test_a_padded_vocabulary_is_cut_to_the_tokenizer(tmp_path):
    """52 rows a rank, of which the tokenizer knows 100; and all of them where it has another size."""
    assert inspect(LEGACY / "llama_legacy_tp2_pp2.nemo")["vocabulary"] == {"true": 100, "rows": 104}
    with tarfile.open(LEGACY / "llama_legacy_tp2_pp2.nemo") as archive:
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
        **CONFIG, "model_type": "mixtral", "architectures": ["MixtralForCausalLM"],
        "num_local_experts": 2, "num_experts_per_tok": 2, "sliding_window": None, "num_hidden_layers": 2,
    }  # fmt: skip
    del config["head_dim"]
    config["hidden_size"] = 32
    dense = {**CONFIG, "num_hidden_layers": 2, "hidden_size": 32, "head_dim": 8}
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
    equal(tmp_path / "hf", arrays)


# what does not belong together


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda f: f.pop("mp_rank_01/model_weights.ckpt"), CorruptCheckpoint, "weights of 1 ranks"),
        (lambda f: f.pop("mp_rank_00/model_weights.ckpt"), CorruptCheckpoint, "1 are missing"),
        (lambda f: f.update({"model_weights.ckpt": f["mp_rank_00/model_weights.ckpt"]}), CorruptCheckpoint, "same rank"),
        (lambda f: f.update({"fsdp_shard_00000/x": b""}), UnsupportedFormat, "FSDP"),
        (lambda f: f.pop("model_config.yaml"), CorruptCheckpoint, "has no model_config.yaml"),
        (lambda f: [f.pop(n) for n in list(f) if "rank" in n], CorruptCheckpoint, "has no model_weights.ckpt"),
        (lambda f: f.update({"mp_rank_01/model_weights.ckpt": b"PK\x03\x04"}), CorruptCheckpoint, "mp_rank_01"),
    ],
)  # fmt: skip
def test_files_that_are_missing_or_too_many(tmp_path, change, error, says):
    files = legacy.members(legacy.states(tiny.tensors(CONFIG), CONFIG, tp=2), legacy.yaml_of(CONFIG))
    change(files)
    with pytest.raises(error) as caught:
        convert(legacy.pack(tmp_path / "x.nemo", files), tmp_path / "hf", to="hf")
    assert says in str(caught.value)
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda s: s.pop("model.decoder.layers.0.mlp.linear_fc2.weight"), CorruptCheckpoint, "rank 1"),
        (lambda s: s.update({"model.decoder.layers.0.odd": torch.ones(1)}), MappingError, "no rule"),
        (
            lambda s: s.update({"model.decoder.layers.7.odd": torch.ones(1)}),
            CorruptCheckpoint,
            "holds layers",
        ),
        (
            lambda s: s.update(
                {"model.decoder.layers.0.self_attention.linear_proj.weight": torch.ones(2, 2).bfloat16()}
            ),
            CorruptCheckpoint,
            "shape [2, 2] on tensor-parallel rank 1 of 2",
        ),
        (
            lambda s: s.update({"model.decoder.final_layernorm.weight": torch.ones(16)}),
            CorruptCheckpoint,
            "different dtypes",
        ),
        (
            lambda s: s.update({"model.module.decoder.final_layernorm.weight": torch.ones(16)}),
            CorruptCheckpoint,
            "under two names",
        ),
    ],
)
def test_ranks_that_do_not_fit(tmp_path, change, error, says):
    ranks = legacy.states(tiny.tensors(CONFIG), CONFIG, tp=2)
    change(ranks[1, 0])
    source = legacy.pack(tmp_path / "x.nemo", legacy.members(ranks, legacy.yaml_of(CONFIG)))
    with pytest.raises(error) as caught:
        convert(source, tmp_path / "hf", to="hf")
    assert says in str(caught.value)
    assert not (tmp_path / "hf").exists()


def test_adapters_are_refused_by_name(tmp_path):
    ranks = legacy.states(tiny.tensors(CONFIG), CONFIG)
    name = "model.decoder.layers.0.self_attention.adapter_layer.lora_kqv_adapter.linear_in.weight"
    ranks[0, 0][name] = torch.ones(2, 2)
    source = legacy.pack(tmp_path / "x.nemo", legacy.members(ranks, legacy.yaml_of(CONFIG)))
    with pytest.raises(UnsupportedFormat, match="adapter"):
        convert(source, tmp_path / "hf", to="hf")
    assert "adapter" in inspect(source)["problem"]
    convert(source, tmp_path / "plain", to="safetensors")
    assert "adapter_layer" in " ".join(tiny.load(tmp_path / "plain"))


@pytest.mark.parametrize("name", ["gpt_sft_model.GPTSFTModel", "megatron_gpt_dpo_model.MegatronGPTDPOModel"])
def test_models_that_nemo_aligner_trained(tmp_path, name):
    target = f"nemo_aligner.models.nlp.gpt.{name}"
    source, arrays = build(
        tmp_path / "x.nemo", settings={"target": target, "dpo": {"ref_policy_kl_penalty": 0.2}}
    )
    convert(source, tmp_path / "hf", to="hf")
    equal(tmp_path / "hf", arrays)
    source, _ = build(
        tmp_path / "y.nemo", settings={"target": target.replace(name, "a.MegatronGPTRewardModel")}
    )
    with pytest.raises(UnsupportedArchitecture, match="MegatronGPTRewardModel"):
        convert(source, tmp_path / "hf2", to="hf")


@pytest.mark.parametrize("name", ["bert_model.MegatronBertModel", "megatron_t5_model.MegatronT5Model"])
def test_other_megatron_models_are_refused_by_name_and_kept_as_tensors(tmp_path, name):
    arrays = tiny.tensors(CONFIG)
    target = f"nemo.collections.nlp.models.language_modeling.{name}"
    files = legacy.members(legacy.states(arrays, CONFIG), legacy.yaml_of(CONFIG, target=target))
    source = legacy.pack(tmp_path / "x.nemo", files)
    with pytest.raises(UnsupportedArchitecture, match=name.rpartition(".")[2]):
        convert(source, tmp_path / "hf", to="hf")
    assert inspect(source)["tensors"] > 0
    convert(source, tmp_path / "plain", to="safetensors")
    assert numpy.array_equal(
        tiny.load(tmp_path / "plain")["model.embedding.word_embeddings.weight"],
        arrays["model.embed_tokens.weight"],
    )


def test_frequencies_that_the_config_does_not_give(tmp_path):
    source, _ = build(tmp_path / "x.nemo", mcore=False, base=12345.0)
    with pytest.raises(UnsupportedFormat, match="frequencies"):
        convert(source, tmp_path / "hf", to="hf")


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"headscale": True}, UnsupportedConfig, "headscale=True"),
        ({"transformer_block_type": "post_ln"}, UnsupportedConfig, "post_ln"),
        ({"megatron_legacy": True}, UnsupportedConfig, "megatron_legacy"),
        ({"apply_embedding_scaling": True}, UnsupportedConfig, "apply_embedding_scaling"),
        ({"name": "megatron_falcon_gpt"}, UnsupportedConfig, "megatron_falcon_gpt"),
        ({"invented_key": 1}, UnsupportedConfig, "invented_key"),
        ({"activation": "fast-mish"}, UnsupportedConfig, "fast-mish"),
        ({"normalization": "batchnorm"}, UnsupportedConfig, "batchnorm"),
        ({"position_embedding_type": "alibi"}, UnsupportedArchitecture, "alibi"),
        ({"rotary_percentage": 0.25, "bias": True}, UnsupportedArchitecture, "rotary_percent"),
        (
            {"mcore_customization_config": {"attn_logit_softcapping": 50.0}},
            UnsupportedArchitecture,
            "softcapping",
        ),
        ({"num_layers": None}, CorruptCheckpoint, "num_layers"),
        ({"num_layers": "four"}, CorruptCheckpoint, "num_layers"),
        ({"tokenizer": {"model": "nemo:../../etc/passwd"}}, UnsafeCheckpoint, "path"),
        (
            {"tokenizer": {"model": "nemo:absent_tokenizer.model"}},
            CorruptCheckpoint,
            "absent_tokenizer.model",
        ),
        ({"encoder_seq_length": "${.absent}"}, CorruptCheckpoint, "refers to nothing"),
        ({"encoder_seq_length": "${.encoder_seq_length}"}, UnsafeCheckpoint, "circles"),
    ],
)
def test_configs_that_are_refused(tmp_path, changes, error, says):
    files = legacy.members(legacy.states(tiny.tensors(CONFIG), CONFIG), legacy.yaml_of(CONFIG, **changes))
    source = legacy.pack(tmp_path / "x.nemo", files)
    with pytest.raises(error) as caught:
        convert(source, tmp_path / "hf", to="hf")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "hf").exists()


def test_an_unknown_key_that_is_accepted(tmp_path):
    source, arrays = build(tmp_path / "x.nemo", settings={"invented_key": 1})
    report = convert(source, tmp_path / "hf", to="hf", allow_ignored=["invented_key"])
    assert report.ignored_keys == ["invented_key"]
    equal(tmp_path / "hf", arrays)


def test_a_path_of_another_machine_is_never_looked_at(tmp_path):
    """NeMo takes a local file of that path before the archive's own; here only the archive counts."""
    (tmp_path / "tokenizer.model").write_bytes(b"local")
    arrays = tiny.tensors(CONFIG)
    settings = legacy.yaml_of(CONFIG, tokenizer={"model": str(tmp_path / "tokenizer.model")})
    files = legacy.members(legacy.states(arrays, CONFIG), settings)
    convert(legacy.pack(tmp_path / "a.nemo", files), tmp_path / "a", to="hf")
    assert not (tmp_path / "a" / "tokenizer.model").exists()
    files["tokenizer.model"] = b"packed"
    convert(legacy.pack(tmp_path / "b.nemo", files), tmp_path / "b", to="hf")
    assert (tmp_path / "b" / "tokenizer.model").read_bytes() == b"packed"


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (b"!!python/object/apply:os.system [id]", UnsafeCheckpoint, "tag"),
        (
            b"a: &a [x, x, x, x, x]\nb: &b [*a, *a, *a, *a]\nc: [" + b"*b, " * 100 + b"]",
            UnsafeCheckpoint,
            "aliases",
        ),
        (b"- a\n- b\n", CorruptCheckpoint, "not a mapping"),
        (b"\xff\xfe", CorruptCheckpoint, "UTF-8"),
        (b"a: 1\na: 2\n", CorruptCheckpoint, "twice"),
    ],
)
def test_hostile_yaml(tmp_path, data, error, says):
    files = {"model_config.yaml": data, "model_weights.ckpt": b"PK"}
    with pytest.raises(error) as caught:
        convert(legacy.pack(tmp_path / "x.nemo", files), tmp_path / "hf", to="hf")
    assert says in str(caught.value)
    assert not (tmp_path / "hf").exists()


class _Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (exec, (f"open({str(self.path)!r}, 'w')",))


@pytest.mark.parametrize("new", [True, False], ids=["zip", "older"])
def test_a_state_dict_that_would_run_code(tmp_path, new):
    ranks = legacy.states(tiny.tensors(CONFIG), CONFIG)
    ranks[0, 0]["model.decoder.layers.0.mlp.linear_fc1._extra_state"] = _Runs(tmp_path / "ran")
    source = legacy.pack(tmp_path / "x.nemo", legacy.members(ranks, legacy.yaml_of(CONFIG), new=new))
    for act in (
        lambda: convert(source, tmp_path / "hf", to="hf"),
        lambda: inspect(source),
        lambda: verify(source),
    ):
        with pytest.raises(UnsafeCheckpoint, match="exec"):
            act()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.nemo"]


@pytest.mark.parametrize("kind", ["symlink", "hard link", "absolute", "parent", "twice", "device"])
def test_hostile_archives(tmp_path, kind):
    files = legacy.members(legacy.states(tiny.tensors(CONFIG), CONFIG), legacy.yaml_of(CONFIG))
    source = legacy.pack(tmp_path / "x.nemo", files)
    with tarfile.open(source, "a") as archive:
        info = tarfile.TarInfo("./more")
        if kind in ("symlink", "hard link"):
            info.type = tarfile.SYMTYPE if kind == "symlink" else tarfile.LNKTYPE
            info.linkname = "/etc/passwd"
        elif kind == "device":
            info.type = tarfile.CHRTYPE
        else:
            info.name = {"absolute": "/tmp/evil", "parent": "./../evil", "twice": "./model_config.yaml"}[kind]
        archive.addfile(info, io.BytesIO(b""))
    with pytest.raises(UnsafeCheckpoint):
        convert(source, tmp_path / "hf", to="hf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.nemo"]


def test_every_cut_is_noticed(tmp_path):
    source, _ = build(tmp_path / "x.nemo", tp=2)
    data = source.read_bytes()
    for size in [*range(0, 4096, 512), *range(4096, len(data) - 10240, len(data) // 20)]:
        cut = tmp_path / "cut.nemo"
        cut.write_bytes(data[:size])
        with pytest.raises(NemoconvError):
            convert(cut, tmp_path / "hf", to="hf")
    assert not (tmp_path / "hf").exists()


# zarr inside


def test_zarr_that_nemo_wrote(tmp_path):
    """NeMo 2.4.1 restored an archive of ours, cast it to bfloat16 and saved it with dist_ckpt_format=zarr."""
    convert(LEGACY / "hf_llama_gqa", tmp_path / "bf16", to="hf", dtype="bfloat16")
    convert(LEGACY / "llama_mcore_zarr_bf16.nemo", tmp_path / "hf", to="hf", verify=True)
    equal(tmp_path / "hf", tiny.load(tmp_path / "bf16"))
    assert verify(LEGACY / "llama_mcore_zarr_bf16.nemo", tmp_path / "bf16").equal


def zarr_files(arrays, config, *, chunk=None, dtype="bfloat16", **changes):
    """A megatron-core checkpoint in zarr, layers stacked, as NeMo 1.21 to 2.0 wrote it."""
    whole = legacy.megatron(arrays, config)
    layers = config["num_hidden_layers"]
    stacked = {
        "embedding.word_embeddings.weight": whole["embed"],
        "decoder.final_layernorm.weight": whole["norm"],
        "output_layer.weight": whole["out"],
    }
    for part in ("qkv", "proj", "fc2", "norm1", "norm2"):
        suffix = {"norm1": "layer_norm_weight", "norm2": "layer_norm_weight"}.get(part, "weight")
        module = legacy._MCORE[part].removesuffix(".layer_norm_{}")
        stacked[f"decoder.layers.{module}.{suffix}"] = numpy.stack(
            [whole[f"{i}.{part}"] for i in range(layers)]
        )
    stacked["decoder.layers.mlp.linear_fc1.weight"] = numpy.stack(
        [numpy.concatenate([whole[f"{i}.gate"], whole[f"{i}.up"]]) for i in range(layers)]
    )
    files = {
        "model_config.yaml": yaml.safe_dump(legacy.yaml_of(config)).encode(),
        "model_weights/metadata.json": json.dumps(
            {"sharded_backend": "zarr", "sharded_backend_version": 1}
        ).encode(),
        "model_weights/common.pt": b"",
    }
    for name, array in stacked.items():
        steps = [1, *array.shape[1:]] if ".layers." in name else list(array.shape)
        if chunk and array.ndim > 1:
            steps[-2] = chunk
        facts = {
            "zarr_format": 2, "shape": list(array.shape), "chunks": steps, "dtype": dtype, "compressor": None,
            "order": "C", "fill_value": None, "filters": None, **changes,
        }  # fmt: skip
        at = f"model_weights/model.{name}/"
        files[at + ".zarray"] = json.dumps(facts).encode()
        counts = [-(-n // s) for n, s in zip(array.shape, steps, strict=True)]
        for index in numpy.ndindex(*counts):
            block = numpy.zeros(steps, array.dtype)  # edge chunks are stored whole
            part = array[tuple(slice(i * s, (i + 1) * s) for i, s in zip(index, steps, strict=True))]
            block[tuple(slice(0, n) for n in part.shape)] = part
            files[at + ".".join(map(str, index))] = block.tobytes()
    return files


@pytest.mark.parametrize("chunk", [None, 5])
@pytest.mark.parametrize("where", ["archive", "folder"])
def test_zarr(tmp_path, chunk, where):
    arrays = tiny.tensors(CONFIG)
    files = zarr_files(arrays, CONFIG, chunk=chunk)
    source = (
        legacy.pack(tmp_path / "x.nemo", files)
        if where == "archive"
        else legacy.unpack(tmp_path / "x", files)
    )
    convert(source, tmp_path / "hf", to="hf", verify=True)
    equal(tmp_path / "hf", arrays)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"compressor": {"id": "blosc"}}, UnsupportedFormat, "compressed"),
        ({"zarr_format": 3}, UnsupportedFormat, "version 2"),
        ({"order": "F"}, UnsupportedFormat, "C order"),
        ({"dtype": "|O"}, UnsupportedFormat, "type"),
        ({"shape": [1 << 40, 1 << 40], "chunks": [1, 1]}, UnsafeCheckpoint, "chunks of shape"),
        ({"shape": [-1, 2]}, CorruptCheckpoint, "no shape"),
        ({"chunks": [0, 1]}, CorruptCheckpoint, "chunks"),
        ({"shape": "wide"}, CorruptCheckpoint, "no shape"),
    ],
)
def test_zarr_that_is_refused(tmp_path, changes, error, says):
    files = zarr_files(tiny.tensors(CONFIG), CONFIG, **changes)
    with pytest.raises(error) as caught:
        convert(legacy.pack(tmp_path / "x.nemo", files), tmp_path / "hf", to="hf")
    assert says in str(caught.value)


@pytest.mark.parametrize("change", ["missing", "short"])
def test_zarr_chunks_that_are_not_there(tmp_path, change):
    files = zarr_files(tiny.tensors(CONFIG), CONFIG)
    name = "model_weights/model.decoder.layers.mlp.linear_fc2.weight/2.0.0"
    if change == "missing":
        del files[name]
    else:
        files[name] = files[name][:-2]
    with pytest.raises(CorruptCheckpoint, match=r"linear_fc2\.weight/2\.0\.0"):
        convert(legacy.pack(tmp_path / "x.nemo", files), tmp_path / "hf", to="hf")


# writing


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "model"
    tiny.write(folder, {**CONFIG, "num_key_value_heads": 2}, bos_token_id=1, eos_token_id=2, use_cache=True)
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
    equal(tmp_path / "hf", tiny.load(model))
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
    _, arrays = build(tmp_path / "x.nemo", tp=2, pp=2, mcore=False)
    tiny.write(tmp_path / "hf", CONFIG, arrays=arrays)
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
    config = {**CONFIG, **changes}
    dtype = str(config["torch_dtype"])
    arrays = tiny.write(tmp_path / "hf", config, dtype=dtype)
    convert(tmp_path / "hf", tmp_path / "x.nemo", to="nemo", tensor_parallel_size=2, verify=True)
    convert(tmp_path / "x.nemo", tmp_path / "back", to="hf", verify=True)
    equal(tmp_path / "back", arrays)
    back = json.loads((tmp_path / "back" / "config.json").read_text())
    assert {key: back.get(key) for key in config} == config


def test_without_our_manifest_the_model_is_the_same(tmp_path, model):
    """What somebody else's tool would pass on: nothing but NeMo's own members."""
    convert(model, tmp_path / "x.nemo", to="nemo", tensor_parallel_size=2)
    with tarfile.open(tmp_path / "x.nemo") as archive:
        files = {m.name[2:]: archive.extractfile(m).read() for m in archive.getmembers() if m.isfile()}
    files = {k: v for k, v in files.items() if not k.startswith(("huggingface/", "nemoconv"))}
    convert(legacy.pack(tmp_path / "y.nemo", files), tmp_path / "hf", to="hf")
    equal(tmp_path / "hf", tiny.load(model))
    assert verify(tmp_path / "hf", model).equal


def test_what_nemo_1_cannot_be_told(tmp_path):
    config = {
        **CONFIG,
        "model_type": "gemma",
        "architectures": ["GemmaForCausalLM"],
        "tie_word_embeddings": True,
    }
    tiny.write(tmp_path / "hf", {**config, "hidden_act": "gelu_pytorch_tanh"})
    with pytest.raises(UnsupportedArchitecture, match="gemma"):
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
    assert refused.exit_code == 5


def test_every_table_that_is_tried_is_there():
    from nemoconv.mappings import architectures

    assert set(nemo1_config.ARCHITECTURES) <= set(architectures())


def test_an_unpacked_archive_of_ours(tmp_path, model):
    convert(model, tmp_path / "x.nemo", to="nemo")
    with tarfile.open(tmp_path / "x.nemo") as archive:
        archive.extractall(tmp_path / "x", filter="data")
    assert verify(tmp_path / "x").manifest
    convert(tmp_path / "x", tmp_path / "hf", to="hf")
    equal(tmp_path / "hf", tiny.load(model))
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
    equal(tmp_path / "hf", hf)
    written = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert written["activation_function"] == "gelu_new"  # the fused kernel that NeMo 1 takes by default
    convert(tmp_path / "hf", tmp_path / "y.nemo", to="nemo", tensor_parallel_size=tp, verify=True)
    assert verify(source, tmp_path / "y.nemo").equal


# a state dict for each rank


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (2, 2), (1, 4)])
@pytest.mark.parametrize("tied", [False, True])
def test_rank_files_are_cut_as_nemo_cuts_them(tmp_path, tp, pp, tied):
    """Entry by entry the same state dicts as those of the builder, which cuts by hand."""
    config = {**CONFIG, "tie_word_embeddings": tied}
    arrays = tiny.write(tmp_path / "hf", config)
    options = {"tensor_parallel_size": tp, "pipeline_parallel_size": pp, "rank_files": True}
    convert(tmp_path / "hf", tmp_path / "x.nemo", to="nemo", verify=True, **options)
    expected = legacy.states(arrays, config, tp=tp, pp=pp)
    with tarfile.open(tmp_path / "x.nemo") as archive:
        for (t, p), state in expected.items():
            folder = (
                ""
                if tp * pp == 1
                else f"mp_rank_{t:02d}/"
                if pp == 1
                else f"tp_rank_{t:02d}_pp_rank_{p:03d}/"
            )
            data = archive.extractfile(f"./{folder}model_weights.ckpt").read()
            held = torch.load(io.BytesIO(data), weights_only=True)
            assert {key for key, value in held.items() if value is not None} == {
                key for key, value in state.items() if value is not None
            }
            for key, value in state.items():
                if value is not None:
                    assert torch.equal(held[key].view(torch.int16), value.view(torch.int16)), key
            empty = {key for key, value in held.items() if value is None}
            assert all(key.endswith("._extra_state") for key in empty)
            assert ("model.output_layer._extra_state" in empty) == (p == pp - 1)
            assert "model.decoder.layers.0.mlp.linear_fc1._extra_state" in empty
    convert(tmp_path / "x.nemo", tmp_path / "back", to="hf", verify=True)
    equal(tmp_path / "back", arrays)
    assert verify(tmp_path / "x.nemo").manifest


def test_rank_files_of_experts_and_padded_rows(tmp_path):
    config = {**CONFIG, "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "vocab_size": 39}
    config |= {
        "num_local_experts": 2,
        "num_experts_per_tok": 2,
        "sliding_window": None,
        "num_hidden_layers": 2,
    }
    dense = tiny.tensors({**config, "num_hidden_layers": 2})
    arrays = {name: array for name, array in dense.items() if ".mlp." not in name}
    for layer in range(2):
        at = f"model.layers.{layer}.block_sparse_moe."
        arrays[at + "gate.weight"] = tiny.bits((2, 16), "bfloat16", layer)
        for expert, (name, shape) in (
            (e, n) for e in range(2) for n in (("w1", (24, 16)), ("w2", (16, 24)), ("w3", (24, 16)))
        ):
            arrays[f"{at}experts.{expert}.{name}.weight"] = tiny.bits(shape, "bfloat16", len(arrays))
    tiny.write(tmp_path / "hf", config, arrays=arrays)
    options = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2, "rank_files": True}
    convert(tmp_path / "hf", tmp_path / "x.nemo", to="nemo", verify=True, **options)
    convert(tmp_path / "x.nemo", tmp_path / "back", to="hf", verify=True)
    equal(tmp_path / "back", arrays)
    with pytest.raises(NemoconvError, match="expert"):
        convert(tmp_path / "hf", tmp_path / "y.nemo", to="nemo", expert_parallel_size=2, rank_files=True)


def test_rank_files_are_of_nemo_1_only(tmp_path, model):
    with pytest.raises(NemoconvError, match="rank_files"):
        convert(model, tmp_path / "x", to="nemo2", rank_files=True)


COMMON = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
GROUPED = {**COMMON, "num_key_value_heads": 2, "vocab_size": 40}
EXPERTS = {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
PLAIN = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 16, "vocab_size": 40}
ARCHITECTURES = {
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 8},
    "phi3": GROUPED,
    "nemotron": {**GROUPED, "head_dim": 8},
    "starcoder2": GROUPED,
    "glm": {**GROUPED, "head_dim": 8},
    "gpt2": PLAIN,
    "gpt_bigcode": PLAIN,
    "gpt_neox": {**COMMON, "vocab_size": 40, "use_parallel_residual": False},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {**EXPERTS, "head_dim": 8},
}


@pytest.mark.parametrize("rank_files", [False, True], ids=["torch_dist", "rank files"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_there_and_back(tmp_path, architecture, rank_files):
    from nemoconv.mappings import load_table
    from nemoconv.mappings.config_fields import read_config

    table = load_table(architecture)
    config = {"model_type": architecture, "architectures": [table.hf_class], "torch_dtype": "bfloat16"}
    config |= ARCHITECTURES[architecture]
    model_config, _ = read_config(table.fields, config)
    sizes = table.sizes(model_config)
    shapes = {
        part.hf.format(**instance.index): part.shape(sizes)
        for instance in table.instances(model_config, sizes)
        for part in instance.rule.parts
    }
    arrays = {name: tiny.bits(shape, "bfloat16", seed) for seed, (name, shape) in enumerate(shapes.items())}
    tiny.write(tmp_path / "hf", config, arrays=arrays)
    tp = 1 if architecture == "gpt_bigcode" else 2  # which has one query group only
    options = {"tensor_parallel_size": tp, "pipeline_parallel_size": 2, "rank_files": rank_files}
    report = convert(tmp_path / "hf", tmp_path / "x.nemo", to="nemo", verify=True, **options)
    assert "no tokenizer" in report.notes[0]
    back = convert(tmp_path / "x.nemo", tmp_path / "back", to="hf", verify=True)
    assert back.architecture == architecture
    equal(tmp_path / "back", arrays)
    assert verify(tmp_path / "hf", tmp_path / "back").equal


def test_damaged_archives_end_in_one_line(tmp_path):
    """Random damage, in text above all: an error of ours or an unharmed reading, never anything else."""
    wholes = []
    for number, new in enumerate((True, False)):
        source, _ = build(tmp_path / f"{number}.nemo", {**CONFIG, "num_hidden_layers": 1}, new=new, tp=2)
        wholes.append(source.read_bytes())
    rng = random.Random(0)
    refused = 0
    for _ in range(60):
        data = bytearray(rng.choice(wholes))
        at = rng.randrange(len(data))
        near = [i for i in range(max(0, at - 2000), min(len(data), at + 2000)) if 32 <= data[i] < 127]
        for place in rng.sample(near or [at], min(3, len(near or [at]))):
            data[place] = rng.choice([data[place] ^ 1, 0, 255, rng.randrange(256)])
        (tmp_path / "damaged.nemo").write_bytes(data)
        try:
            convert(tmp_path / "damaged.nemo", tmp_path / "hf", to="hf", overwrite=True)
        except NemoconvError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 15
