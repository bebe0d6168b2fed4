"""megatron-core's own change of layout between two GPU models, measured as :mod:`live` measures ours."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist


def _groups(tensor: int, pipeline: int) -> Any:
    """The process groups of a model on two ranks."""
    from megatron.core.hyper_comm_grid import HyperCommGrid
    from megatron.core.process_groups_config import ProcessGroupCollection

    grid = HyperCommGrid([tensor, 1, 1, pipeline, 1], ["tp", "cp", "ep", "pp", "dp"])
    single = {name: grid.create_pg(name) for name in ("tp", "cp", "pp", "ep", "dp")}
    several = {
        "tp_cp": ["tp", "cp"],
        "mp": ["tp", "cp", "ep", "pp"],
        "tp_ep": ["tp", "ep"],
        "tp_ep_pp": ["tp", "ep", "pp"],
        "dp_cp": ["cp", "dp"],
        "tp_dp_cp": ["tp", "cp", "dp"],
    }
    made = {name: grid.create_pg(axes) for name, axes in several.items()}
    ends = single["pp"] if pipeline > 1 else single["dp"]
    return ProcessGroupCollection(
        **single, **made, embd=ends, pos_embd=ends, expt_tp=single["tp"], expt_dp=single["dp"]
    )


def _model(layers: int, tensor: int, pipeline: int) -> torch.nn.Module:
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.transformer_config import TransformerConfig

    groups = _groups(tensor, pipeline)
    config = TransformerConfig(
        num_layers=layers,
        hidden_size=4096,
        num_attention_heads=32,
        num_query_groups=8,
        ffn_hidden_size=14336,
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=pipeline,
        pipeline_dtype=torch.bfloat16,
        params_dtype=torch.bfloat16,
        bf16=True,
        normalization="RMSNorm",
        activation_func=torch.nn.functional.silu,
        gated_linear_unit=True,
        add_bias_linear=False,
        bias_activation_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        perform_initialization=False,
    )
    stage = dist.get_rank(groups.pp)
    model = GPTModel(
        config=config,
        transformer_layer_spec=get_gpt_layer_local_spec(normalization="RMSNorm"),
        vocab_size=128256,
        max_sequence_length=64,
        pre_process=stage == 0,
        post_process=stage == pipeline - 1,
        share_embeddings_and_output_weights=False,
        position_embedding_type="rope",
        pg_collection=groups,
    )
    return model.cuda().bfloat16()


def megatron_core(
    layers: int,
    steps: int,
    timed: Callable[[Callable[[], Any], int], list[float]],
    extra_memory: Callable[[Callable[[], Any]], float],
) -> dict[str, Any]:
    """The same change by ``swap_model_weights`` over NCCL."""
    from megatron.core import parallel_state
    from megatron.core.resharding.refit import swap_model_weights
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    parallel_state.initialize_model_parallel(1, 1)
    model_parallel_cuda_manual_seed(1)
    source, target = _model(layers, 2, 1), _model(layers, 1, 2)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.normal_()
        for parameter in target.parameters():
            parameter.fill_(float("nan"))

    def there() -> None:
        swap_model_weights(source, target, "nccl")

    def back() -> None:
        swap_model_weights(target, source, "nccl")

    found: dict[str, Any] = {"first call ms": timed(there, 1)[0] * 1e3}
    found["bit-equal"] = not any(bool(p.isnan().any()) for p in target.parameters())
    timed(back, 1)
    found["extra MiB"] = extra_memory(there)
    found["extra MiB back"] = extra_memory(back)
    for name, call in (("TP2 -> PP2 ms", there), ("PP2 -> TP2 ms", back)):
        times = timed(call, steps)
        found[name] = statistics.median(times) * 1e3
        found[name + " (least)"] = min(times) * 1e3
    return found
