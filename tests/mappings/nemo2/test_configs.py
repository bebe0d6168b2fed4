from __future__ import annotations

import dataclasses

import pytest

from nemoconv.entry_points import BUILT_IN, entries
from nemoconv.mappings import load_table
from nemoconv.mappings.nemo2.configs import INERT, LLAMA_DEFAULTS, MAPPED, OFF, ONLY_WITH

# nemo-toolkit has no wheel that installs beside the rest of the tests: read off GPTConfig of 2.7.3.
_GPT_CONFIG = """
    fp16_lm_cross_entropy parallel_output share_embeddings_and_output_weights
    make_vocab_size_divisible_by position_embedding_type rotary_base rotary_percent
    seq_len_interpolation_factor seq_length attention_softmax_in_fp32 masked_softmax_fusion
    cross_entropy_loss_fusion gradient_accumulation_fusion deallocate_pipeline_outputs
    scatter_embedding_sequence_parallel tp_only_amax_red use_transformer_engine_full_layer_spec
    transformer_layer_spec forward_step_fn data_step_fn generation_config vocab_size
    tp_comm_overlap_cfg use_transformer_engine_op_fuser
"""


def places(field: str) -> list[str]:
    groups = {"MAPPED": MAPPED, "OFF": OFF, "INERT": INERT, **ONLY_WITH}
    return [name for name, group in groups.items() if field in group]


def test_every_field_of_megatron_core_is_known_and_in_one_place() -> None:
    config = pytest.importorskip("megatron.core.transformer.transformer_config")
    fields = [field.name for field in dataclasses.fields(config.TransformerConfig)]
    assert len(fields) > 150
    wrong = {field: places(field) for field in [*fields, *_GPT_CONFIG.split()] if len(places(field)) != 1}
    assert wrong == {}, "a new megatron-core? say what these fields do"


def test_the_default_of_megatron_core_is_off() -> None:
    config = pytest.importorskip("megatron.core.transformer.transformer_config")
    defaults = {field.name: field.default for field in dataclasses.fields(config.TransformerConfig)}
    wrong = {name: defaults[name] for name in OFF if name in defaults and defaults[name] not in OFF[name]}
    assert wrong == {}


def test_no_field_is_in_two_places() -> None:
    everything = [
        *MAPPED,
        *OFF,
        *INERT,
        *(field for group in ONLY_WITH.values() for field in group),
    ]
    assert len(everything) == len(set(everything))
    assert set(ONLY_WITH) <= set(OFF)


def test_the_tables_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        OFF["qk_layernorm"] = (True,)  # type: ignore[index]
    with pytest.raises(TypeError):
        LLAMA_DEFAULTS["b"] = {}  # type: ignore[index]


def test_llama_defaults_are_whole_and_only_of_mapped_fields() -> None:
    scaling = {"scale_factor", "low_freq_factor", "high_freq_factor", "old_context_len"}
    for name, defaults in LLAMA_DEFAULTS.items():
        has_scaling = name.startswith(("Llama31", "Llama32"))
        assert set(defaults) == MAPPED - (set() if has_scaling else scaling), name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("LlamaConfig", {"seq_length": 4096, "rotary_base": 10_000, "num_query_groups": None}),
        ("Llama2Config70B", {"num_layers": 80, "num_query_groups": 8, "ffn_hidden_size": 28_672}),
        ("Llama31Config", {"scale_factor": 8.0, "old_context_len": 8192, "init_method_std": 0.02}),
        ("Llama31Config405B", {"num_layers": 126, "num_query_groups": 8, "high_freq_factor": 4.0}),
        ("Llama32Config1B", {"scale_factor": 32, "share_embeddings_and_output_weights": True}),
        ("CodeLlamaConfig7B", {"rotary_base": 1_000_000, "num_layers": 32, "seq_length": 16_384}),
        ("CodeLlamaConfig70B", {"rotary_base": 10_000, "seq_length": 4096, "num_layers": 80}),
    ],
)
def test_llama_defaults_known_by_heart(name: str, expected: dict[str, object]) -> None:
    defaults = LLAMA_DEFAULTS[name]
    assert {key: defaults[key] for key in expected} == expected


def test_an_architecture_lies_in_a_file_of_its_name() -> None:
    for name, entry in entries("mappings").items():
        if entry.origin == BUILT_IN:
            own = load_table(name).model_type
            file = entry.target.partition(":")[0].removeprefix("nemoconv.mappings.models.")
            assert file == own.replace("-", "_"), name
