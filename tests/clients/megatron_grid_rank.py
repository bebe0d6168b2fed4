"""One rank of a Megatron job at any layout of a grid: dense or with experts, virtual stages included."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import megatron_layout_rank as layouts
import megatron_moe_rank as moe
import megatron_rank as rank
import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.transformer_config import TransformerConfig

from nemoconv.converters.nemo2.context import read_context
from nemoconv.mappings import table_for_nemo
from nemoconv.stores.files import SourceDir


def read_fields(directory: str) -> dict[str, Any]:
    """What io.json says, on top of the defaults of its class."""
    source = SourceDir(Path(directory))
    context = read_context(source)
    source.close()
    table = table_for_nemo(context.config_class, context.fields, "here")
    defaults = table.nemo.defaults[context.config_class.name]
    return {name: value for name, value in defaults.items() if value is not None} | context.fields


def build_chunks(fields: dict[str, Any], sizes: dict[str, int]) -> list[GPTModel]:
    """This rank's runs of layers, one model each, at the layout that io.json states."""
    known = {field.name for field in dataclasses.fields(TransformerConfig)}
    stated = {name: fields.get(name) or 1 for name in sizes}
    assert stated == sizes
    config = TransformerConfig(
        **rank.LLAMA
        | {name: value for name, value in fields.items() if name in known}
        | rank.ON_CPU
        | {
            "activation_func": torch.nn.functional.silu,
            "bf16": False,
            "fp16": False,
            "params_dtype": torch.float32,
            "pipeline_dtype": torch.float32,
            "expert_tensor_parallel_size": parallel_state.get_expert_tensor_parallel_world_size(),
            "sequence_parallel": False,
            "moe_token_dispatcher_type": "allgather",
            "moe_grouped_gemm": False,
        }
    )
    virtual = config.virtual_pipeline_model_parallel_size
    parallel_state.set_virtual_pipeline_model_parallel_world_size(virtual)
    stage, count = parallel_state.get_pipeline_model_parallel_rank(), virtual or 1
    last = config.pipeline_model_parallel_size - 1, count - 1
    spec = get_gpt_layer_local_spec(
        num_experts=config.num_moe_experts, qk_layernorm=config.qk_layernorm, normalization="RMSNorm"
    )
    moe.as_transformer_engine_names_it(spec, latent=False)
    return [
        GPTModel(
            config=config,
            transformer_layer_spec=spec,
            vocab_size=fields["vocab_size"],
            max_sequence_length=fields["seq_length"],
            pre_process=(stage, number) == (0, 0),
            post_process=(stage, number) == last,
            parallel_output=False,
            share_embeddings_and_output_weights=fields["share_embeddings_and_output_weights"],
            position_embedding_type="rope",
            rotary_base=fields["rotary_base"],
            vp_stage=number if virtual else None,
        )
        .float()
        .eval()
        for number in range(count)
    ]


def compare_grid(
    directory: str, reference: str, tp: int, pp: int, ep: int, etp: int, sizes: dict[str, int]
) -> dict[str, Any]:
    """Load a NeMo 2 directory, which must state these ``sizes``; how far are its logits from the reference?"""
    fields = read_fields(directory)
    chunks = build_chunks(fields, sizes)
    for chunk in chunks:
        for p in chunk.parameters():
            p.data.fill_(float("nan"))
    wanted = {f"model{n}": chunk.sharded_state_dict(prefix="module.") for n, chunk in enumerate(chunks)}
    state, unasked, absent = dist_checkpointing.load(
        wanted, f"{directory}/weights", strict="return_all", validate_access_integrity=True
    )
    assert (absent, [key for key in unasked if not key.endswith("_extra_state")]) == (set(), [])
    filled = 0
    for number, chunk in enumerate(chunks):
        mine = {key.removeprefix("module."): value for key, value in state[f"model{number}"].items()}
        chunk.load_state_dict(mine, strict=False)
        assert not [name for name, p in chunk.named_parameters() if p.isnan().any()]
        filled += sum(p.numel() for p in chunk.parameters())
    given = torch.load(reference, weights_only=True)
    out = layouts.run_through(chunks, given["ids"], fields["hidden_size"], pp)
    result: dict[str, Any] = {"parameters": filled}
    if out is not None:
        expected = given["logits"]
        result["diff"] = (out[..., : expected.shape[-1]] - expected).abs().max().item()
    parallel_state.set_virtual_pipeline_model_parallel_world_size(None)
    return result


rank.JOBS["compare_grid"] = compare_grid

if __name__ == "__main__":
    rank.serve()
