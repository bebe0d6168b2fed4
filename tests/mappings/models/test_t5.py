"""T5 and mT5: the tables' own tests, transformers' defaults, two names for one tensor, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nemoconv.converters.registry import open_checkpoint
from nemoconv.converters.run.convert import convert
from nemoconv.converters.run.reshard import reshard
from nemoconv.errors import LayoutError, MappingError, UnsupportedConfig
from nemoconv.formats.text.fiddle import Symbol
from nemoconv.mappings import load_table, samples, table_for_nemo
from nemoconv.mappings.hf.fields import read_config, write_config
from nemoconv.testing import MappingTests, data_of

SIZES = {
    "num_layers": 2,
    "d_model": 32,
    "d_ff": 48,
    "d_kv": 16,
    "num_heads": 4,
    "vocab_size": 67,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}


def config(architecture: str = "t5", **changes: Any) -> dict[str, Any]:
    hf_class = load_table(architecture).hf_class
    return {"model_type": architecture, "architectures": [hf_class], **SIZES, **changes}


class TestT5(MappingTests):
    config = config()


class TestUL2(MappingTests):
    config = config(feed_forward_proj="gated-silu")


class TestMT5(MappingTests):
    config = config("mt5")


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [("t5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}), ("mt5", {})],
)
def test_missing_keys_take_the_defaults_of_transformers(architecture: str, changes: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    fields = load_table(architecture).fields
    theirs = getattr(transformers, f"{architecture.upper()}Config")(**changes).to_dict()
    ours = read_config(fields, {"model_type": architecture, **changes})[0]
    assert read_config(fields, theirs)[0] == ours


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tie_word_embeddings", True),
        ("scale_decoder_outputs", True),
        ("feed_forward_proj", "relu"),
        ("feed_forward_proj", "gated-relu"),
        ("dense_act_fn", "gelu"),
        ("is_gated_act", False),
        ("num_decoder_layers", 3),
        ("relative_attention_num_buckets", 64),
        ("relative_attention_max_distance", 256),
        ("d_kv", "many"),
    ],
)
def test_what_is_refused_is_named(key: str, value: object) -> None:
    with pytest.raises(UnsupportedConfig, match="tie_word_embeddings" if key.startswith("scale") else key):
        read_config(load_table("t5").fields, config(**{key: value}))


def test_a_first_t5_is_refused_by_what_makes_it_one() -> None:
    given = config()
    del given["tie_word_embeddings"]
    with pytest.raises(UnsupportedConfig, match="d_model"):
        read_config(load_table("t5").fields, given)


def test_transformers_5_writes_that_weights_are_tied_and_means_something_else() -> None:
    fields = load_table("t5").fields
    given = config(tie_word_embeddings=True, scale_decoder_outputs=False, dense_act_fn="gelu_new")
    assert read_config(fields, given)[0] == read_config(fields, config())[0]


def read_nemo(**changes: Any) -> dict[str, Any]:
    table = load_table("t5")
    name, written = table.nemo.write(read_config(table.fields, config())[0])
    symbol, given = Symbol(table.nemo.module, name), {**written, **changes}
    return table_for_nemo(symbol, given, "test", "t5").nemo.read(symbol, given, "test")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("encoder_num_layers", 3),
        ("bias_activation_fusion", False),
        ("activation_func", Symbol("torch.nn.functional", "relu")),
        ("softmax_scale", None),
        ("share_embeddings_and_output_weights", True),
        ("gated_linear_unit", False),
        ("position_embedding_type", "learned_absolute"),
        ("qk_layernorm", True),
        ("transformer_layer_spec", Symbol("megatron.core.models.T5.t5_spec", "other_spec")),
    ],
)
def test_what_is_refused_of_nemo_is_named(field: str, value: object) -> None:
    assert read_nemo() == read_config(load_table("t5").fields, config())[0]
    with pytest.raises(UnsupportedConfig, match=field):
        read_nemo(**{field: value})


def test_what_config_json_cannot_say_is_refused() -> None:
    read = read_nemo(num_query_groups=2)
    with pytest.raises(UnsupportedConfig, match="num_query_groups"):
        write_config(load_table("t5").fields, read)


def test_pipeline_stages_are_refused(tmp_path: Path) -> None:
    samples.build(tmp_path / "hf", config())
    with pytest.raises(LayoutError, match="pipeline"):
        convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2", pipeline_parallel_size=2)
    assert not (tmp_path / "nemo").exists()


@pytest.mark.parametrize("tp", [1, 2])
def test_megatron_has_the_output_layer_under_both_of_its_names(tmp_path: Path, tp: int) -> None:
    samples.build(tmp_path / "hf", config())
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2", tensor_parallel_size=tp)
    with open_checkpoint(tmp_path / "nemo") as nemo, open_checkpoint(tmp_path / "hf") as hf:
        first, second = (nemo.read(f"{name}output_layer.weight") for name in ("", "lm_head."))
        assert first.tobytes() == second.tobytes()
        assert first[:67].tobytes() == hf.read("lm_head.weight").tobytes()


def test_two_output_layers_that_differ_are_refused(tmp_path: Path) -> None:
    """Of two conversions that differ in the output layer, one file gets one of the other's two copies."""
    from safetensors.numpy import load_file, save_file

    files = []
    for name in ("a", "b"):
        samples.build(tmp_path / name, config())
        file = tmp_path / name / "model.safetensors"
        tensors = load_file(file)
        if name == "b":
            tensors["lm_head.weight"] = tensors["lm_head.weight"][::-1].copy()
        save_file(tensors, file)
        convert(tmp_path / name, tmp_path / f"nemo-{name}", to="nemo2")
        (tmp_path / f"nemo-{name}/nemoconv_manifest.json").unlink()
        files.append((tmp_path / f"nemo-{name}/weights/__0_0.distcp").read_bytes())
    ours, theirs = files
    differing = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
    gap = max(range(1, len(differing)), key=lambda i: differing[i] - differing[i - 1])
    second = differing[gap]
    (tmp_path / "nemo-a/weights/__0_0.distcp").write_bytes(ours[:second] + theirs[second:])
    with pytest.raises(MappingError, match=r"output_layer.weight and lm_head.output_layer.weight are one"):
        convert(tmp_path / "nemo-a", tmp_path / "back", to="hf")


def test_another_layout_has_both_names_too(tmp_path: Path) -> None:
    samples.build(tmp_path / "hf", config())
    for tp in (1, 2):
        convert(tmp_path / "hf", tmp_path / f"nemo{tp}", to="nemo2", tensor_parallel_size=tp)
    reshard(tmp_path / "nemo1", tmp_path / "cut", tensor_parallel_size=2, verify=True)
    assert data_of(tmp_path / "cut") == data_of(tmp_path / "nemo2")


def test_layers_of_two_stacks_cannot_be_taken_out(tmp_path: Path) -> None:
    samples.build(tmp_path / "hf", config())
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2")
    with pytest.raises(UnsupportedConfig, match="encoder_num_layers"):
        reshard(tmp_path / "nemo", tmp_path / "first", layers="0")


def test_copies_of_the_embedding_in_old_files_are_left_out(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    samples.build(tmp_path / "plain", config())
    held = load_file(tmp_path / "plain/model.safetensors")
    copies = {f"{stack}.embed_tokens.weight": held["shared.weight"] for stack in ("encoder", "decoder")}
    never_read = {
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": held["shared.weight"]
    }
    save_file({**held, **copies, **never_read}, tmp_path / "plain/model.safetensors")
    convert(tmp_path / "plain", tmp_path / "nemo", to="nemo2")
    convert(tmp_path / "nemo", tmp_path / "back", to="hf")
    assert data_of(tmp_path / "back").keys() == held.keys()
