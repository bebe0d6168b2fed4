"""LLaVA, Qwen2-VL and Qwen2.5-VL: the tables' own tests, both forms of config.json, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from vision_configs import LLAVA, QWEN2_5_VL, QWEN2_VL, changed

from nemoconv.converters.registry import open_checkpoint
from nemoconv.converters.run.convert import convert
from nemoconv.converters.run.reshard import reshard
from nemoconv.errors import CorruptCheckpoint, UnsupportedArchitecture, UnsupportedConfig
from nemoconv.formats.text.fiddle import Node, Symbol
from nemoconv.mappings import load_table, samples, table_for_nemo
from nemoconv.mappings.hf.fields import read_config, write_config
from nemoconv.mappings.nemo2.fields_vision import CLIP_MODELS
from nemoconv.testing import MappingTests, data_of

ALL = {"llava": LLAVA, "qwen2_vl": QWEN2_VL, "qwen2_5_vl": QWEN2_5_VL}


class TestLlava(MappingTests):
    config = LLAVA


class TestQwen2VL(MappingTests):
    config = {**QWEN2_VL, "tie_word_embeddings": True}


class TestQwen25VL(MappingTests):
    config = QWEN2_5_VL


def read(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    table = load_table(config["model_type"])
    for path, value in changes.items():
        config = changed(config, path.replace("__", "."), value)
    return read_config(table.fields, config)[0]


def through_nemo(config: dict[str, Any]) -> dict[str, Any]:
    """The model config again, from what NeMo's fields say of it."""
    table = load_table(config["model_type"])
    model = {**read(config), "params_dtype": "bfloat16"}
    name, fields = table.nemo.write(model)
    symbol = Symbol(table.nemo.module, name)
    assert table_for_nemo(symbol, fields, "test") is table
    return table.nemo.read(symbol, fields, "test")


@pytest.mark.parametrize("architecture", ALL)
def test_nemos_fields_say_all_that_config_json_says(architecture: str) -> None:
    expected = {**read(ALL[architecture]), "params_dtype": "bfloat16"}
    told = through_nemo(ALL[architecture])
    carried = {key for key, _ in load_table(architecture).manifest_fields}
    assert told == {key: value for key, value in expected.items() if key not in carried}


@pytest.mark.parametrize(
    ("architecture", "config_class"),
    [("llava", "LlavaConfig"), ("qwen2_vl", "Qwen2VLConfig"), ("qwen2_5_vl", "Qwen2_5_VLConfig")],
)
def test_missing_keys_take_the_defaults_of_transformers(architecture: str, config_class: str) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = getattr(transformers, config_class)().to_dict()
    # of Qwen's class this default of the tower fits none of the decoders, and this one no NeMo
    given: dict[str, Any] = {"model_type": architecture}
    if architecture != "llava":
        width = "hidden_size" if architecture == "qwen2_vl" else "out_hidden_size"
        given["vision_config"] = {width: 8192}
        theirs["vision_config"][width] = 8192
    if architecture == "qwen2_5_vl":
        given["vision_config"]["tokens_per_second"] = theirs["vision_config"]["tokens_per_second"] = 2
    fields = load_table(architecture).fields
    ours, said = read_config(fields, given)[0], read_config(fields, theirs)[0]
    ours.pop("inner_inert", None), said.pop("inner_inert", None)
    assert said == ours


@pytest.mark.parametrize("config", [LLAVA, QWEN2_5_VL, QWEN2_VL], ids=lambda c: c["model_type"])
def test_transformers_own_form_says_the_same(config: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    kind = transformers.CONFIG_MAPPING[config["model_type"]]
    written = json.loads(kind.from_dict(dict(config)).to_json_string(use_diff=False))
    ours, theirs = read(config), read(written)
    ours.pop("inner_inert", None), theirs.pop("inner_inert", None)
    assert theirs == ours


def test_inert_keys_of_inner_configs_come_back(tmp_path: Path) -> None:
    config = changed(changed(LLAVA, "text_config.bos_token_id", 7), "vision_config.initializer_factor", 0.5)
    samples.build(tmp_path / "hf", config)
    for name in ("preprocessor_config.json", "processor_config.json"):
        (tmp_path / "hf" / name).write_text(json.dumps({"of": name}))
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2")
    convert(tmp_path / "nemo", tmp_path / "back", to="hf")
    written = json.loads((tmp_path / "back/config.json").read_text())
    assert written["text_config"]["bos_token_id"] == 7
    assert written["vision_config"]["projection_dim"] == 768
    assert written["vision_config"]["initializer_factor"] == 0.5
    assert written["image_token_index"] == 5
    for name in ("preprocessor_config.json", "processor_config.json"):
        assert (tmp_path / "nemo/context/nemo_tokenizer" / name).read_bytes()
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "hf" / name).read_bytes()


@pytest.mark.parametrize(
    ("config", "path", "value"),
    [
        (LLAVA, "vision_feature_layer", [-2, -5]),
        (LLAVA, "vision_feature_layer", -14),
        (LLAVA, "vision_feature_select_strategy", "none"),
        (LLAVA, "projector_hidden_act", "relu"),
        (LLAVA, "multimodal_projector_bias", False),
        (LLAVA, "text_config.model_type", "mistral"),
        (LLAVA, "text_config.sliding_window", 64),
        (LLAVA, "text_config.hidden_act", "gelu"),
        (LLAVA, "vision_config.model_type", "siglip_vision_model"),
        (LLAVA, "vision_config.hidden_act", "gelu"),
        (LLAVA, "vision_config.layer_norm_eps", 1e-6),
        (LLAVA, "vision_config.num_hidden_layers", 11),
        (LLAVA, "vision_config.patch_size", 16),
        (QWEN2_5_VL, "vision_config.window_size", 56),
        (QWEN2_5_VL, "vision_config.tokens_per_second", 4),
        (QWEN2_5_VL, "vision_config.spatial_merge_size", 1),
        (QWEN2_5_VL, "vision_config.hidden_act", "gelu"),
        (QWEN2_5_VL, "vision_config.fullatt_block_indexes", "all"),
        (QWEN2_5_VL, "vision_config.rope_parameters", {"rope_type": "axial", "rope_theta": 500.0}),
        (QWEN2_5_VL, "vision_start_token_id", 7),
        (QWEN2_5_VL, "use_sliding_window", True),
        (QWEN2_5_VL, "rope_scaling.mrope_section", [24, 20, 20]),
        (QWEN2_5_VL, "rope_scaling", {"type": "linear", "factor": 2.0}),
        (QWEN2_VL, "vision_config.in_channels", 4),
    ],
    ids=lambda value: (
        value["model_type"] if isinstance(value, dict) and "model_type" in value else str(value)
    ),
)
def test_what_nemo_cannot_say_is_named(config: dict[str, Any], path: str, value: Any) -> None:
    named = {"patch_size": "patch_dim", "num_hidden_layers": "num_layers", "rope_scaling": "rotary scaling"}
    key = path.rpartition(".")[2]
    with pytest.raises(UnsupportedConfig, match=named.get(key, key)):
        through_nemo(changed(config, path, value))


def test_a_missing_tokens_per_second_is_transformers_default_which_nemo_has_not() -> None:
    vision = {key: value for key, value in QWEN2_5_VL["vision_config"].items() if key != "tokens_per_second"}
    with pytest.raises(UnsupportedConfig, match="tokens_per_second=4"):
        read({**QWEN2_5_VL, "vision_config": vision})


def test_heads_that_no_section_fits_are_refused() -> None:
    with pytest.raises(UnsupportedConfig, match="heads of 64"):
        read({**QWEN2_VL, "num_attention_heads": 4})


def test_two_answers_to_one_question_are_refused() -> None:
    twice = {**QWEN2_VL, "text_config": {**QWEN2_VL, "model_type": "qwen2_vl_text", "num_hidden_layers": 3}}
    for key in ("architectures", "vision_config", *(key for key in twice if key.startswith("vi"))):
        twice["text_config"].pop(key, None)
    with pytest.raises(UnsupportedConfig, match="disagree about num_layers"):
        read(twice)


def test_keys_written_twice_are_read() -> None:
    """As transformers 4.53 writes a config that it has read from a flat file."""
    ids = {"image_token_id": None, "vision_start_token_id": 151652, "vision_token_id": 151654}
    names = set(QWEN2_VL) - {"model_type", "vision_config", "torch_dtype", "vision_end_token_id"}
    nested = {key: QWEN2_VL[key] for key in sorted(names)}
    rope = {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"}
    nested |= {**ids, "model_type": "qwen2_vl_text", "sliding_window": None, "rope_scaling": rope}
    nested["layer_types"] = ["full_attention"] * 2
    twice = {**QWEN2_VL, "text_config": nested, "rope_scaling": rope}
    told, once = read(twice), read(QWEN2_VL)
    assert set(told.pop("inner_inert")["text_config"]) >= {"vision_token_id"}
    del once["inner_inert"]
    assert told == once


def test_the_tower_must_give_what_the_decoder_takes() -> None:
    with pytest.raises(UnsupportedConfig, match="128 features"):
        read(QWEN2_5_VL, vision_config__out_hidden_size=128)


def test_tied_embeddings_may_be_said_in_either_place() -> None:
    for config in (
        {**QWEN2_VL, "tie_word_embeddings": True},
        changed(LLAVA, "text_config.tie_word_embeddings", True),
        {**LLAVA, "tie_word_embeddings": True},
    ):
        model = read(config)
        assert model["share_embeddings_and_output_weights"] is True
        written = write_config(load_table(config["model_type"]).fields, model)
        assert written["tie_word_embeddings"] is True
        assert written.get("text_config", written)["tie_word_embeddings"] is True


def test_the_config_of_llava_1_5_becomes_what_nemos_importer_sets() -> None:
    """config.json of the 7B model on the hub, which leaves most of its text_config to transformers' defaults."""
    large = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    }
    config = {
        **{
            key: LLAVA[key] for key in ("architectures", "model_type", "ignore_index", "projector_hidden_act")
        },
        "image_token_index": 32000,
        "pad_token_id": 32001,
        "text_config": {
            "_name_or_path": "lmsys/vicuna-7b-v1.5",
            "architectures": ["LlamaForCausalLM"],
            "max_position_embeddings": 4096,
            "model_type": "llama",
            "rms_norm_eps": 1e-05,
            "torch_dtype": "float16",
            "vocab_size": 32064,
        },
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "vision_config": {
            **large,
            "image_size": 336,
            "model_type": "clip_vision_model",
            "patch_size": 14,
            "projection_dim": 768,
            "vocab_size": 32000,
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }
    name, fields = load_table("llava").nemo.write({**read(config), "params_dtype": "float16"})
    assert name == "LlavaConfig"
    decoder = fields["language_transformer_config"].args
    sizes = {"num_layers": 32, "hidden_size": 4096, "ffn_hidden_size": 11008, "num_attention_heads": 32}
    told = {**sizes, "num_query_groups": 32, "vocab_size": 32064, "rotary_base": 10000.0, "seq_length": 4096}
    assert {key: decoder[key] for key in told} == told
    tower = fields["vision_transformer_config"].args
    assert tower["pretrained_model_name_or_path"] == "openai/clip-vit-large-patch14-336"
    projector = fields["vision_projection_config"].args
    expected = {
        "input_size": 1024,
        "hidden_size": 4096,
        "ffn_hidden_size": 4096,
        "projector_type": "mlp2x_gelu",
    }
    assert {key: projector[key] for key in expected} == expected


@pytest.mark.parametrize("name", CLIP_MODELS)
def test_a_tower_of_the_hub_is_said_by_its_name(name: str) -> None:
    sizes = CLIP_MODELS[name]
    hf = {
        "ffn_hidden_size": "intermediate_size",
        "num_layers": "num_hidden_layers",
        "patch_dim": "patch_size",
    }
    vision = {hf.get(key, key): value for key, value in {"hidden_size": 768, **sizes}.items()}
    config = {**LLAVA, "vision_config": {"model_type": "clip_vision_model", **vision}}
    model = {**read(config), "params_dtype": "bfloat16"}
    _, fields = load_table("llava").nemo.write(model)
    assert fields["vision_transformer_config"].args["pretrained_model_name_or_path"] == name
    assert through_nemo(config)["vision"] == model["vision"]


def test_a_class_token_that_is_kept_is_counted() -> None:
    config = {**LLAVA, "vision_feature_select_strategy": "full"}
    _, fields = load_table("llava").nemo.write({**read(config), "params_dtype": "bfloat16"})
    assert fields["drop_vision_class_token"] is False
    assert fields["vision_transformer_config"].args["add_class_token"] is True
    assert through_nemo(config)["drop_vision_class_token"] is False


def nemo_fields(architecture: str) -> tuple[Symbol, dict[str, Any]]:
    table = load_table(architecture)
    name, fields = table.nemo.write({**read(ALL[architecture]), "params_dtype": "bfloat16"})
    return Symbol(table.nemo.module, name), fields


def inside(fields: dict[str, Any], part: str, **changes: Any) -> dict[str, Any]:
    node = fields[part]
    return {**fields, part: Node(node.symbol, {**node.args, **changes}, node.kind)}


@pytest.mark.parametrize(
    ("architecture", "part", "changes"),
    [
        ("llava", "vision_projection_config", {"projector_type": "mcore_affine"}),
        ("llava", "vision_projection_config", {"bias": False}),
        ("llava", "vision_projection_config", {"activation_func": Symbol("torch", "relu")}),
        ("llava", "vision_transformer_config", {"pretrained_model_name_or_path": "somebody/else"}),
        ("llava", "language_transformer_config", {"qk_layernorm": True}),
        ("qwen2_5_vl", "vision_transformer_config", {"normalization": "LayerNorm"}),
        ("qwen2_5_vl", "vision_transformer_config", {"embed_dim": 48}),
        ("qwen2_5_vl", "vision_transformer_config", {"spatial_merge_size": 1}),
        ("qwen2_5_vl", "language_transformer_config", {"mrope_section": [8, 28, 28]}),
        ("qwen2_vl", "vision_transformer_config", {"add_class_token": True}),
    ],
)
def test_what_config_json_cannot_say_is_named(architecture: str, part: str, changes: dict[str, Any]) -> None:
    symbol, fields = nemo_fields(architecture)
    nemo = load_table(architecture).nemo
    with pytest.raises(UnsupportedConfig, match=next(iter(changes)) + "|somebody/else"):
        nemo.read(symbol, inside(fields, part, **changes), "test")


@pytest.mark.parametrize(
    ("architecture", "part", "changes"),
    [
        ("llava", "vision_transformer_config", {"hidden_size": "x"}),
        ("llava", "vision_projection_config", {"input_size": -3}),
        ("qwen2_5_vl", "vision_transformer_config", {"patch_dim": None}),
        ("qwen2_5_vl", "vision_transformer_config", {"hidden_size": True, "embed_dim": True}),
        ("qwen2_vl", "vision_transformer_config", {"num_layers": [2]}),
    ],
)
def test_sizes_that_are_none_are_corrupt(architecture: str, part: str, changes: dict[str, Any]) -> None:
    symbol, fields = nemo_fields(architecture)
    with pytest.raises(CorruptCheckpoint, match=next(iter(changes))):
        load_table(architecture).nemo.read(symbol, inside(fields, part, **changes), "test")


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("llava", {"vision_feature_layer": "last"}),
        ("llava", {"vision_feature_layer": 99}),
        ("qwen2_5_vl", {"fullatt_block_indexes": [1, "x"]}),
    ],
)
def test_settings_that_no_model_has_are_refused_on_the_way_back(
    architecture: str, changes: dict[str, Any]
) -> None:
    symbol, fields = nemo_fields(architecture)
    part = "vision_transformer_config"
    wrong = inside(fields, part, **changes) if architecture != "llava" else {**fields, **changes}
    table = load_table(architecture)
    with pytest.raises(UnsupportedConfig, match=next(iter(changes))):
        write_config(table.fields, table.nemo.read(symbol, wrong, "test"))


@pytest.mark.parametrize(
    ("module", "name", "architecture", "layers", "hidden"),
    [
        ("neva.model.llava", "Llava15Config7B", "llava", 32, 4096),
        ("neva.model.llava", "Llava15Config13B", "llava", 40, 5120),
        ("qwen2vl.model.qwen2vl", "Qwen2VLConfig2B", "qwen2_vl", 28, 1536),
        ("qwen2vl.model.qwen2vl", "Qwen25VLConfig7B", "qwen2_5_vl", 28, 3584),
        ("qwen2vl.model.qwen2vl", "Qwen25VLConfig32B", "qwen2_5_vl", 64, 5120),
    ],
)
def test_nemos_own_classes_are_read_with_their_defaults(
    module: str, name: str, architecture: str, layers: int, hidden: int
) -> None:
    symbol = Symbol(f"nemo.collections.vlm.{module}", name)
    table = table_for_nemo(symbol, {}, "test")
    assert table.architecture == architecture
    config = table.nemo.read(symbol, {}, "test")
    assert (config["num_layers"], config["hidden_size"]) == (layers, hidden)
    table.sizes({**config, "vocab_size": config["vocab_size"] or 32000})
    write_config(table.fields, {**config, "params_dtype": "bfloat16"})


def test_a_config_without_its_parts_is_refused() -> None:
    symbol = Symbol("nemo.collections.vlm.qwen2vl.model.base", "Qwen2VLConfig")
    with pytest.raises(UnsupportedArchitecture, match="Qwen2VLConfig"):
        table_for_nemo(symbol, {}, "test")


def test_other_spellings_of_the_names_are_read(tmp_path: Path) -> None:
    """transformers has named the tensors in three ways; all mean the same model."""
    samples.build(tmp_path / "hub", LLAVA)
    data = data_of(tmp_path / "hub")
    table = load_table("llava")
    for old, new in (
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head.", "lm_head."),
        ("vision_tower.vision_model.", "model.vision_tower.vision_model."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
        ("language_model.model.", "language_model."),
        ("vision_tower.vision_model.", "vision_tower."),
    ):
        named = [name for name in data if name.startswith(old)]
        assert named
        assert [table.spelled(new + name.removeprefix(old)) for name in named] == named


@pytest.mark.parametrize("architecture", ["llava", "qwen2_5_vl"])
def test_a_change_of_layout_keeps_everything(tmp_path: Path, architecture: str) -> None:
    samples.build(tmp_path / "hf", {**ALL[architecture], "vocab_size": 131, **_odd(architecture)})
    convert(tmp_path / "hf", tmp_path / "tp1", to="nemo2")
    reshard(tmp_path / "tp1", tmp_path / "tp2", tensor_parallel_size=2, pipeline_parallel_size=2)
    with open_checkpoint(tmp_path / "tp2") as checkpoint:
        assert str(checkpoint.layout) == "tp2 pp2"
        assert checkpoint.context.decoder_fields["vocab_size"] == 132  # type: ignore[attr-defined]
    convert(tmp_path / "tp2", tmp_path / "back", to="hf", verify=True)
    assert data_of(tmp_path / "hf") == data_of(tmp_path / "back")


def test_some_layers_of_the_decoder_keep_the_whole_tower(tmp_path: Path) -> None:
    samples.build(tmp_path / "hf", QWEN2_VL)
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2")
    reshard(tmp_path / "nemo", tmp_path / "cut", layers="1", tensor_parallel_size=2)
    convert(tmp_path / "cut", tmp_path / "back", to="hf", verify=True)
    whole, cut = data_of(tmp_path / "hf"), data_of(tmp_path / "back")
    assert json.loads((tmp_path / "back/config.json").read_text())["num_hidden_layers"] == 1
    for name, data in cut.items():
        assert data == whole[name.replace("model.layers.0.", "model.layers.1.")], name
    assert len(whole) - len(cut) == len([name for name in whole if name.startswith("model.layers.0.")])


def _odd(architecture: str) -> dict[str, Any]:
    return {"text_config": {**LLAVA["text_config"], "vocab_size": 131}} if architecture == "llava" else {}


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("mllama", "xattn_layers"),
        ("gemma3", "published sizes"),
        ("llama4", "llama4_text"),
        ("internvl", "InternViT"),
        ("llava_next", "pack_image_features"),
        ("qwen2_5_omni", "no Megatron model of it"),
        ("paligemma", "no Megatron model of it"),
    ],
)
def test_others_are_refused_by_name_with_a_reason(architecture: str, reason: str) -> None:
    with pytest.raises(UnsupportedArchitecture, match=f"{architecture}.*{reason}"):
        load_table(architecture)
