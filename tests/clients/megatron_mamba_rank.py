"""One rank of a Megatron job with a state-space model: :mod:`megatron_rank` with another build.

megatron-core's mixer runs as it is. What it imports from packages of CUDA kernels is stood in for by the same
mathematics in torch: the scan, a step after the other, and the gated norm.
"""

from __future__ import annotations

import dataclasses
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F


class GatedRMSNorm(torch.nn.Module):
    """mamba_ssm's ``RMSNorm``: gate first, then a norm of each group of channels by itself."""

    def __init__(self, size: int, eps: float, group_size: int, norm_before_gate: bool, **where: Any) -> None:
        super().__init__()
        assert not norm_before_gate
        self.eps, self.group_size = eps, group_size
        self.weight = torch.nn.Parameter(torch.ones(size, **where))

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        groups = (x * F.silu(z)).unflatten(-1, (-1, self.group_size))
        scale = torch.rsqrt(groups.pow(2).mean(-1, keepdim=True) + self.eps)
        return (groups * scale).flatten(-2) * self.weight


def scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    chunk: int,
    **rest: Any,
) -> torch.Tensor:
    """mamba_ssm's ``mamba_chunk_scan_combined`` without chunks. x [batch, length, heads, width]."""
    steps = F.softplus(dt + rest["dt_bias"])
    per_group = x.shape[2] // B.shape[2]
    B, C = (t.repeat_interleave(per_group, 2) for t in (B, C))
    state = torch.zeros(*x.shape[:1], *x.shape[2:], B.shape[-1])
    out = []
    for t in range(x.shape[1]):
        decay = torch.exp(steps[:, t] * A)[..., None, None]
        added = steps[:, t, :, None, None] * x[:, t, :, :, None] * B[:, t, :, None, :]
        state = state * decay + added
        out.append((state * C[:, t, :, None, :]).sum(-1) + rest["D"][None, :, None] * x[:, t])
    return torch.stack(out, 1)


def stand_in(name: str, **members: Any) -> None:
    """A module of this name, and its packages."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:end]), ModuleType(".".join(parts[:end])))
    sys.modules[name].__dict__.update(members)


stand_in("mamba_ssm.ops.triton.layernorm_gated", RMSNorm=GatedRMSNorm)
stand_in(
    "mamba_ssm.ops.triton.ssd_combined",
    mamba_chunk_scan_combined=scan,
    mamba_split_conv1d_scan_combined=None,
)
stand_in("mamba_ssm.ops.triton.selective_state_update", selective_state_update=None)

import megatron_rank as rank  # noqa: E402

kernels = ModuleType("tensor_ops")  # of inference, written for GPUs
kernels.__dict__.update(
    dict.fromkeys(("tensor_get_slice_after", "tensor_masked_update", "tensor_merge")),
)
sys.modules["megatron.core.inference.contexts.attention_context.triton.tensor_ops"] = kernels

from megatron.core import parallel_state  # noqa: E402
from megatron.core.activations import squared_relu  # noqa: E402
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add  # noqa: E402
from megatron.core.models.mamba import MambaModel  # noqa: E402
from megatron.core.ssm import mamba_block  # noqa: E402
from megatron.core.ssm.mamba_block import MambaStack, MambaStackSubmodules  # noqa: E402
from megatron.core.ssm.mamba_layer import MambaLayer, MambaLayerSubmodules  # noqa: E402
from megatron.core.ssm.mamba_mixer import MambaMixer, MambaMixerSubmodules  # noqa: E402
from megatron.core.ssm.mlp_layer import MLPLayer  # noqa: E402
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear  # noqa: E402
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules  # noqa: E402
from megatron.core.transformer.dot_product_attention import DotProductAttention  # noqa: E402
from megatron.core.transformer.enums import AttnMaskType  # noqa: E402
from megatron.core.transformer.mlp import MLP, MLPSubmodules  # noqa: E402
from megatron.core.transformer.spec_utils import ModuleSpec  # noqa: E402
from megatron.core.transformer.torch_norm import WrappedTorchNorm  # noqa: E402
from megatron.core.transformer.transformer_config import TransformerConfig  # noqa: E402
from megatron.core.transformer.transformer_layer import (  # noqa: E402
    TransformerLayer,
    TransformerLayerSubmodules,
)

from nemoconv.converters.nemo2.context import read_context  # noqa: E402
from nemoconv.mappings import table_for_nemo  # noqa: E402

mamba_block.TENorm = WrappedTorchNorm


def spec() -> ModuleSpec:
    """megatron-core's own stack, with linears and norms of its own instead of TransformerEngine's, which calls
    a norm before a linear a part of it."""
    both = {"linear_proj": RowParallelLinear, "core_attention": DotProductAttention}
    return ModuleSpec(
        MambaStack,
        submodules=MambaStackSubmodules(
            mamba_layer=ModuleSpec(
                MambaLayer,
                submodules=MambaLayerSubmodules(
                    norm=WrappedTorchNorm,
                    mixer=ModuleSpec(
                        MambaMixer,
                        submodules=MambaMixerSubmodules(ColumnParallelLinear, RowParallelLinear),
                    ),
                    mamba_bda=get_bias_dropout_add,
                    sharded_state_dict_keys_map={"norm.": "mixer.in_proj.layer_norm_"},
                ),
            ),
            attention_layer=ModuleSpec(
                TransformerLayer,
                submodules=TransformerLayerSubmodules(
                    input_layernorm=WrappedTorchNorm,
                    self_attention=ModuleSpec(
                        SelfAttention,
                        params={"attn_mask_type": AttnMaskType.causal},
                        submodules=SelfAttentionSubmodules(linear_qkv=ColumnParallelLinear, **both),
                    ),
                    self_attn_bda=get_bias_dropout_add,
                    sharded_state_dict_keys_map={"input_layernorm.": "self_attention.linear_qkv.layer_norm_"},
                ),
            ),
            mlp_layer=ModuleSpec(
                MLPLayer,
                submodules=TransformerLayerSubmodules(
                    pre_mlp_layernorm=WrappedTorchNorm,
                    mlp=ModuleSpec(
                        MLP,
                        submodules=MLPSubmodules(
                            linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear
                        ),
                    ),
                    mlp_bda=get_bias_dropout_add,
                    sharded_state_dict_keys_map={"pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_"},
                ),
            ),
        ),
    )


def build(fields: dict[str, Any], tp: int, pp: int, dtype: torch.dtype) -> MambaModel:
    """The part of a model that this rank holds, from all fields."""
    known = {field.name for field in dataclasses.fields(TransformerConfig)}
    told = {name: value for name, value in fields.items() if name in known and value is not None}
    own = {
        "activation_func": squared_relu,
        "hidden_dropout": 0.0,
        "params_dtype": dtype,
        "bf16": False,
        "fp16": False,
        "tensor_model_parallel_size": tp,
        "use_mamba_mem_eff_path": False,
    }
    config = TransformerConfig(**(told | rank.ON_CPU | own))
    assert parallel_state.get_pipeline_model_parallel_world_size() == pp == 1
    rank.TRANSFORMER_ENGINE_ONLY |= {"final_norm._extra_state"} | {
        f"layers.{layer}.self_attention.core_attention._extra_state" for layer in range(config.num_layers)
    }
    model = MambaModel(
        config=config,
        mamba_stack_spec=spec(),
        vocab_size=fields["vocab_size"],
        max_sequence_length=fields["seq_length"],
        hybrid_override_pattern=fields["hybrid_override_pattern"],
        parallel_output=False,
        share_embeddings_and_output_weights=fields["share_embeddings_and_output_weights"],
        position_embedding_type="none",
    )
    return model.to(dtype).eval()


def context_with_defaults(source: Any) -> SimpleNamespace:
    """What a context folder says, with what NeMo's class says where the folder says nothing."""
    context = read_context(source)
    table = table_for_nemo(context.config_class, context.fields, "here")
    return SimpleNamespace(
        fields={**table.nemo.defaults[context.config_class.name], **context.fields},
    )


rank.read_context = context_with_defaults
rank.build = build

if __name__ == "__main__":
    rank.serve()
