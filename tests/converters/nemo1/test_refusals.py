"""NeMo 1 archives whose parts do not belong together, or that no table describes: refused in one line."""

from __future__ import annotations

import random

import legacy_nemo as legacy
import numpy
import pytest
import tiny

from nemoconv.converters.look.inspect import inspect
from nemoconv.converters.run.convert import convert
from nemoconv.errors import (
    CorruptCheckpoint,
    MappingError,
    NemoconvError,
    UnsafeCheckpoint,
    UnsupportedArchitecture,
    UnsupportedConfig,
    UnsupportedFormat,
)

torch = pytest.importorskip("torch")

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
    files = legacy.members(
        legacy.states(tiny.tensors(legacy.CONFIG), legacy.CONFIG, tp=2), legacy.yaml_of(legacy.CONFIG)
    )
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
    ranks = legacy.states(tiny.tensors(legacy.CONFIG), legacy.CONFIG, tp=2)
    change(ranks[1, 0])
    source = legacy.pack(tmp_path / "x.nemo", legacy.members(ranks, legacy.yaml_of(legacy.CONFIG)))
    with pytest.raises(error) as caught:
        convert(source, tmp_path / "hf", to="hf")
    assert says in str(caught.value)
    assert not (tmp_path / "hf").exists()


def test_adapters_are_refused_by_name(tmp_path):
    ranks = legacy.states(tiny.tensors(legacy.CONFIG), legacy.CONFIG)
    name = "model.decoder.layers.0.self_attention.adapter_layer.lora_kqv_adapter.linear_in.weight"
    ranks[0, 0][name] = torch.ones(2, 2)
    source = legacy.pack(tmp_path / "x.nemo", legacy.members(ranks, legacy.yaml_of(legacy.CONFIG)))
    with pytest.raises(UnsupportedFormat, match="adapter"):
        convert(source, tmp_path / "hf", to="hf")
    assert "adapter" in inspect(source)["problem"]
    convert(source, tmp_path / "plain", to="safetensors")
    assert "adapter_layer" in " ".join(tiny.load(tmp_path / "plain"))


@pytest.mark.parametrize("name", ["gpt_sft_model.GPTSFTModel", "megatron_gpt_dpo_model.MegatronGPTDPOModel"])
def test_models_that_nemo_aligner_trained(tmp_path, name):
    target = f"nemo_aligner.models.nlp.gpt.{name}"
    source, arrays = legacy.build(
        tmp_path / "x.nemo", settings={"target": target, "dpo": {"ref_policy_kl_penalty": 0.2}}
    )
    convert(source, tmp_path / "hf", to="hf")
    legacy.assert_holds(tmp_path / "hf", arrays)
    source, _ = legacy.build(
        tmp_path / "y.nemo", settings={"target": target.replace(name, "a.MegatronGPTRewardModel")}
    )
    with pytest.raises(UnsupportedArchitecture, match="MegatronGPTRewardModel"):
        convert(source, tmp_path / "hf2", to="hf")


@pytest.mark.parametrize(
    "name", ["megatron_bart_model.MegatronBARTModel", "megatron_retrieval_model.MegatronRetrievalModel"]
)
def test_other_megatron_models_are_refused_by_name_and_kept_as_tensors(tmp_path, name):
    arrays = tiny.tensors(legacy.CONFIG)
    target = f"nemo.collections.nlp.models.language_modeling.{name}"
    files = legacy.members(legacy.states(arrays, legacy.CONFIG), legacy.yaml_of(legacy.CONFIG, target=target))
    source = legacy.pack(tmp_path / "x.nemo", files)
    with pytest.raises(UnsupportedArchitecture, match=name.rpartition(".")[2]) as caught:
        convert(source, tmp_path / "hf", to="hf")
    assert ("encoder-decoders" if "bart" in name else "look texts up") in str(caught.value)
    assert "--to safetensors" in str(caught.value)
    assert inspect(source)["tensors"] > 0
    convert(source, tmp_path / "plain", to="safetensors")
    assert numpy.array_equal(
        tiny.load(tmp_path / "plain")["model.embedding.word_embeddings.weight"],
        arrays["model.embed_tokens.weight"],
    )


def test_frequencies_that_the_config_does_not_give(tmp_path):
    source, _ = legacy.build(tmp_path / "x.nemo", mcore=False, base=12345.0)
    with pytest.raises(UnsupportedFormat, match="frequencies"):
        convert(source, tmp_path / "hf", to="hf")


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"headscale": True}, UnsupportedConfig, "headscale=True"),
        ({"transformer_block_type": "post_ln"}, UnsupportedConfig, "post_ln"),
        ({"megatron_legacy": True}, UnsupportedConfig, "megatron_legacy"),
        ({"apply_embedding_scaling": True}, UnsupportedArchitecture, "apply_embedding_scaling=True"),
        ({"name": "megatron_falcon_gpt"}, UnsupportedArchitecture, "megatron_falcon_gpt"),
        ({"name": "megatron_griffin"}, UnsupportedConfig, "megatron_griffin"),
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
    files = legacy.members(
        legacy.states(tiny.tensors(legacy.CONFIG), legacy.CONFIG), legacy.yaml_of(legacy.CONFIG, **changes)
    )
    source = legacy.pack(tmp_path / "x.nemo", files)
    with pytest.raises(error) as caught:
        convert(source, tmp_path / "hf", to="hf")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "hf").exists()


def test_an_unknown_key_that_is_accepted(tmp_path):
    source, arrays = legacy.build(tmp_path / "x.nemo", settings={"invented_key": 1})
    report = convert(source, tmp_path / "hf", to="hf", allow_ignored=["invented_key"])
    assert report.ignored_keys == ["invented_key"]
    legacy.assert_holds(tmp_path / "hf", arrays)


def test_a_path_of_another_machine_is_never_looked_at(tmp_path):
    """NeMo takes a local file of that path before the archive's own; here only the archive counts."""
    (tmp_path / "tokenizer.model").write_bytes(b"local")
    arrays = tiny.tensors(legacy.CONFIG)
    settings = legacy.yaml_of(legacy.CONFIG, tokenizer={"model": str(tmp_path / "tokenizer.model")})
    files = legacy.members(legacy.states(arrays, legacy.CONFIG), settings)
    convert(legacy.pack(tmp_path / "a.nemo", files), tmp_path / "a", to="hf")
    assert not (tmp_path / "a" / "tokenizer.model").exists()
    files["tokenizer.model"] = b"packed"
    convert(legacy.pack(tmp_path / "b.nemo", files), tmp_path / "b", to="hf")
    assert (tmp_path / "b" / "tokenizer.model").read_bytes() == b"packed"


def test_damaged_archives_end_in_one_line(tmp_path):
    """Random damage, in text above all: an error of ours or an unharmed reading, never anything else."""
    wholes = []
    for number, new in enumerate((True, False)):
        source, _ = legacy.build(
            tmp_path / f"{number}.nemo", {**legacy.CONFIG, "num_hidden_layers": 1}, new=new, tp=2
        )
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
