"""One description per architecture: what it is held to when it is built, and how it is found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from nemoconv import built_in
from nemoconv.mappings import architectures, described, indexing, load_table
from nemoconv.mappings.architecture import Architecture, confused, models
from nemoconv.mappings.blocks.attention import Attention
from nemoconv.mappings.blocks.mlp import Mixture
from nemoconv.mappings.blocks.place import There
from nemoconv.mappings.blocks.stack import Blocks
from nemoconv.mappings.families.deepseek import EXPERTS
from nemoconv.mappings.hf.fields import Field, Fixed, Nullable
from nemoconv.mappings.hf.rope import Rope
from nemoconv.mappings.llama_like import STANDARD, llama_like, plain_gpt, standard
from nemoconv.mappings.nemo2.fields import NemoFixed
from nemoconv.mappings.rules import same

#: every description once, whatever its model types
ALL = [known for name in architectures() if (known := described(name)) is not None and known.name == name]


def toy(**more: Any) -> Architecture:
    """A Llama of another name."""
    return llama_like("toy", "ToyForCausalLM", **more)


# --- what is refused when it is built ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"config": (Field("logit_scale", "one"), Field("logit_scale", "two"))},
            r"toy: the key logit_scale of config\.json is owned twice, by Field\(.*'one'.* and Field\(.*'two'",
        ),
        (
            {"config": (Field("one", "logit_scale"), Field("two", "logit_scale"))},
            r"toy: the field logit_scale of the model config is owned twice, by Field\(hf='one'.* and Field\(hf='two'",
        ),
        (
            {"nemo2": plain_gpt(NemoFixed("qk_layernorm", True), NemoFixed("qk_layernorm", False))},
            r"toy: the field qk_layernorm of NeMo 2's config is owned twice, by NemoFixed\(.*True.* and NemoFixed\(.*False",
        ),
        (
            {"blocks": Blocks(attention=Attention(bias=There((("no_such_field", True),))))},
            r"toy: decoder\.layers\.\{layer\}\.self_attention\.linear_qkv\.bias is there when no_such_field says so, "
            "a field that no rule for config.json sets",
        ),
        (
            {"extra": (same("scale", "model.scale", "channels"),)},
            "toy: scale has the factor channels, for which there is no size",
        ),
        (
            {"extra": (same("decoder.scale.{layer}", "model.scale", "hidden"),)},
            r"toy: model\.scale and decoder\.scale\.\{layer\} have other holes",
        ),
        (
            {"extra": (same("scale", "model.norm.weight", "hidden"),)},
            r"toy: model\.norm\.weight is named by two rules",
        ),
        (
            {"blocks": Blocks(mixture=Mixture()), "names": {"router": "mlp.gate"}},
            "toy: a block asks for the expert_gate, for which there is no name",
        ),
        (
            {"blocks": Blocks(mixture=Mixture()), "names": EXPERTS},
            "toy: a rule or a block asks for 'num_moe_experts', a field that no rule for config.json sets before",
        ),
        (
            {"samples": ({"hidden_size": 7},)},
            r"toy: a sample cannot be read: config\.json: hidden_size=7 is not a multiple of 32 heads; give samples",
        ),
        ({"names": {"querry": "q"}}, "toy: a decoder has no part querry"),
        ({"defaults": {"n_layer": 3}}, r"the standard rules for config\.json have no n_layer"),
        ({"without": ("n_layer",)}, r"the standard rules for config\.json have no n_layer"),
    ],
)
def test_what_could_not_work_is_refused_by_name(more: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toy(**more)


def test_two_that_cannot_be_told_apart_are_named() -> None:
    smollm3 = described("smollm3")
    assert smollm3 is not None
    assert list(confused(toy(), [smollm3])) == [
        "toy: its NeMo 2 config GPTConfig might be that of smollm3, too; one of them must say read_as"
    ]
    assert list(confused(toy(nemo2=plain_gpt(read_as="smollm3")), [smollm3])) == []


@pytest.mark.parametrize("architecture", ALL, ids=[each.name for each in ALL])
def test_no_config_is_taken_for_that_of_another_architecture(architecture: Architecture) -> None:
    assert list(confused(architecture, ALL)) == []


@pytest.mark.parametrize("architecture", ALL, ids=[each.name for each in ALL])
def test_every_architecture_has_a_sample(architecture: Architecture) -> None:
    assert models(architecture)
    assert architecture.proofs


# --- what follows ------------------------------------------------------------------------------------


def test_own_rules_take_the_place_of_the_standard_ones() -> None:
    rope, ffn = Rope(500.0), Nullable("d_ff", "ffn_hidden_size")
    found = standard(ffn, rope, Fixed("own", 1), keys={"hidden_size": "d"}, defaults={"d": 8, "head_dim": 4})
    assert [type(rule) for rule in found[:3]] == [Field, Field, Nullable]
    assert (found[1].hf, found[1].default) == ("d", 8)  # type: ignore[attr-defined]
    assert Field("head_dim", "kv_channels", 4) in found
    assert found[-3:] == (Fixed("own", 1), rope, STANDARD[-1])


def test_one_name_for_several_roles_is_one_tensor() -> None:
    packed = toy(names=dict.fromkeys(("query", "key", "value"), "self_attn.qkv"))
    (rule,) = (rule for rule in packed.rules if rule.nemo.endswith("linear_qkv.weight"))
    assert [part.hf for part in rule.parts] == ["model.layers.{layer}.self_attn.qkv.weight"] * 3


def test_a_table_is_compiled_once() -> None:
    made = toy()
    assert made.table is made.table
    changed = replace(made, hf_class="OtherForCausalLM")
    assert (changed.table.hf_class, changed.table.rules) == ("OtherForCausalLM", made.table.rules)


# --- how it is found ---------------------------------------------------------------------------------


def test_the_index_is_fresh() -> None:
    assert indexing.FILE.read_text() == indexing.text(), "run python -m nemoconv.mappings.indexing"


def test_a_model_type_may_be_the_same_as_another() -> None:
    assert load_table("kimi_k2") is load_table("deepseek_v3")
    assert built_in.ARCHITECTURES["kimi_k2"] == built_in.ARCHITECTURES["deepseek_v3"]


def test_reading_a_config_imports_the_few_that_may_fit() -> None:
    assert built_in.NEMO_MODULES["nemo.collections.llm.gpt.model.chatglm"] == ("chatglm", "glm")
    assert built_in.NEMO_1["gpt"].index("llama") < built_in.NEMO_1["gpt"].index("mistral")
