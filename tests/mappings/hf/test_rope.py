"""Rotary embeddings: every spelling means what transformers takes it to mean, or is refused."""

from __future__ import annotations

import json

import pytest

from nemoconv.errors import UnsupportedConfig
from nemoconv.mappings import load_table
from nemoconv.mappings.hf.fields import read_config
from nemoconv.mappings.hf.rope import Rope, normal_scaling

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32.0,
        "beta_slow": 1.0, "attention_factor": 1.2, "truncate": False}  # fmt: skip
SCALINGS = [
    None,
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 512},
    LLAMA3,
    YARN,
]
KINDS = [scaling["rope_type"] if scaling else "default" for scaling in SCALINGS]


def read(**hf):
    config = {}
    Rope().read(hf, config)
    return config["rotary_base"], config["rope_scaling"]


def refused(**hf):
    with pytest.raises(UnsupportedConfig) as caught:
        read(**hf)
    assert caught.value.exit_code == 5
    return str(caught.value)


def test_nothing_means_the_default():
    assert read() == (10000.0, None)
    assert read(rope_theta=None, rope_scaling=None, rope_parameters=None) == (10000.0, None)
    assert read(rope_scaling={}) == (10000.0, None)


@pytest.mark.parametrize("scaling", SCALINGS, ids=KINDS)
def test_every_spelling_is_the_same(scaling):
    expected = (5e5, scaling)
    old = {"rope_theta": 500000, "rope_scaling": scaling}
    legacy = scaling and {"type" if k == "rope_type" else k: v for k, v in scaling.items()}
    new = {"rope_parameters": {**(scaling or {"rope_type": "default"}), "rope_theta": 5e5}}
    assert read(**old) == expected
    assert read(rope_theta=5e5, rope_scaling=legacy) == expected
    assert read(**new) == expected
    assert read(**old, **new) == expected
    assert read(rope_theta=5e5, **new) == expected
    if scaling:
        assert read(rope_theta=5e5, rope_scaling={**scaling, "type": scaling["rope_type"]}) == expected
        assert read(rope_theta=5e5, rope_parameters=scaling) == expected


@pytest.mark.parametrize("scaling", SCALINGS, ids=KINDS)
def test_write_then_read(scaling):
    hf = {}
    Rope().write({"rotary_base": 5e5, "rope_scaling": scaling}, hf)
    assert set(hf) == {"rope_theta", "rope_scaling", "rope_parameters"}
    assert read(**hf) == (5e5, scaling)
    for key in hf:
        rest = {k: v for k, v in hf.items() if k != key}
        if key != "rope_parameters":
            assert read(**rest) == (5e5, scaling)
    assert hf["rope_scaling"] is not scaling or scaling is None


@pytest.mark.parametrize("scaling", SCALINGS, ids=KINDS)
def test_transformers_reads_what_is_written_the_same(tmp_path, scaling):
    """The frequencies that it computes, from the file with both spellings and from the source."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    sizes = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
    }
    source = {**sizes, "rope_theta": 5e5, **({"rope_scaling": scaling} if scaling else {})}
    written = {}
    Rope().write(read_config(load_table("llama").fields, source)[0], written)

    def frequencies(hf, name):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(hf))
        config = transformers.AutoConfig.from_pretrained(tmp_path / name)
        rotary = LlamaRotaryEmbedding(config)
        position = torch.arange(300)[None]
        cos, sin = rotary(torch.zeros(1, 300, 16), position)
        return rotary.inv_freq, rotary.attention_scaling, cos, sin, rotary.rope_type

    a, b = frequencies(source, "a"), frequencies({**sizes, **written}, "b")
    assert torch.equal(a[0], b[0])
    assert a[1] == b[1]
    assert torch.equal(a[2], b[2])
    assert torch.equal(a[3], b[3])
    assert a[4] == b[4] == (scaling or {"rope_type": "default"})["rope_type"]


def test_two_places_that_disagree():
    new = {"rope_type": "default", "rope_theta": 5e5}
    said = refused(rope_theta=1e4, rope_parameters=new)
    assert said == (
        "config.json: rope_parameters says (500000.0, None), rope_theta and rope_scaling say (10000.0, None); "
        "remove the one that is wrong"
    )
    assert "rope_parameters says" in refused(rope_scaling=LLAMA3, rope_parameters=new)
    other = {**LLAMA3, "factor": 32.0, "rope_theta": 5e5}
    assert "rope_parameters says" in refused(rope_theta=5e5, rope_scaling=LLAMA3, rope_parameters=other)


@pytest.mark.parametrize(
    ("hf", "message"),
    [
        ({"rope_theta": float("nan")}, "config.json: rope_theta=nan is out of range"),
        ({"rope_theta": float("inf")}, "config.json: rope_theta=inf is out of range"),
        ({"rope_theta": 0}, "config.json: rope_theta=0 is not positive"),
        ({"rope_theta": -1.0}, "config.json: rope_theta=-1.0 is not positive"),
        ({"rope_theta": "1e4"}, "config.json: rope_theta='1e4' is not of type float"),
        ({"rope_theta": True}, "config.json: rope_theta=True is not of type float"),
        ({"rope_scaling": "linear"}, "config.json: rope_scaling='linear' is not a dictionary"),
        ({"rope_parameters": [1]}, "config.json: rope_parameters=[1] is not a dictionary"),
        ({"rope_parameters": {"rope_theta": "x"}}, "config.json: rope_theta='x' is not of type float"),
        (
            {"rope_scaling": {"factor": 2.0}},
            "config.json: rope_scaling has ['factor'] but no rope_type",
        ),
        (
            {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}},
            "config.json: rope_scaling has the unsupported rope_type 'longrope'",
        ),
        (
            {"rope_scaling": {"rope_type": "linear", "type": "dynamic", "factor": 2.0}},
            "config.json: rope_scaling has two types, ['dynamic', 'linear']",
        ),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": float("nan")}},
            "config.json: rope_scaling.factor=nan is out of range",
        ),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": "2"}},
            "config.json: rope_scaling.factor='2' is not of type float",
        ),
        (
            {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 8192.0}},
            "config.json: rope_scaling.original_max_position_embeddings=8192.0 is not of type int",
        ),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "beta_fast": 1.0}},
            "config.json: rope_scaling of type 'llama3': high_freq_factor is missing, low_freq_factor is missing, "
            "original_max_position_embeddings is missing, beta_fast is unknown",
        ),
        (
            {"rope_scaling": {**YARN, "truncate": 1}},
            "config.json: rope_scaling.truncate=1 is not of type bool",
        ),
    ],
)
def test_what_nobody_can_interpret_is_refused(hf, message):
    assert refused(**hf) == message


@pytest.mark.parametrize("kind", [5, ["linear"], {"a": 1}, True])
def test_a_rope_type_of_another_kind_is_refused(kind):
    assert "rope_type" in refused(rope_scaling={"rope_type": kind, "factor": 2.0})


def test_null_parameters_are_none_at_all():
    assert normal_scaling("x", {"rope_type": "yarn", "factor": 2.0, "mscale": None}) == {
        "rope_type": "yarn",
        "factor": 2.0,
    }


def test_numbers_are_normalized_so_that_equal_configs_are_equal():
    assert normal_scaling("x", {"type": "linear", "factor": 2}) == {"rope_type": "linear", "factor": 2.0}
    assert type(read(rope_theta=10000)[0]) is float
