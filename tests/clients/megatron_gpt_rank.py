"""One rank of a Megatron job with a model of the GPT-2 family, a ChatGLM, a Llama whose layers differ, one that
attends both ways or has multi-token prediction, or a T5: :mod:`megatron_dense_rank` with what those need."""

from __future__ import annotations

from typing import Any

import megatron_dense_rank as dense
import megatron_mtp as mtp
import megatron_rank as rank
import megatron_t5 as t5
import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.heterogeneous.heterogeneous_layer_specs import get_gpt_heterogeneous_layer_spec
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.heterogeneous.heterogeneous_config import HeterogeneousTransformerConfig
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_config import TransformerConfig

BLOCKS = "heterogeneous_layers_config_encoded_json"
GEMMA_LAYERS = "layers of Gemma2Config"
# the same of layers that are stored one by one
rank.TRANSFORMER_ENGINE_ONLY |= {
    f"layers.{layer}.self_attention.core_attention._extra_state" for layer in range(8)
}


def sees_both_ways(fields: dict[str, Any]) -> bool:
    return "Embedding" in fields["class"] or "Reranker" in fields["class"]


class ProjectionThenNorm(RowParallelLinear):
    """NeMo's ``TERowParallelLinearLayerNorm`` around other norms than Gemma's."""

    def __init__(self, input_size: int, output_size: int, *, config: TransformerConfig, **rest: Any) -> None:
        super().__init__(input_size, output_size, config=config, **rest)
        self.post_layernorm = WrappedTorchNorm(config, output_size)  # its epsilon is 1e-05, too

    def forward(self, x: torch.Tensor) -> Any:
        out, bias = super().forward(x)
        return self.post_layernorm(out), bias


def spec(config: TransformerConfig, fields: dict[str, Any]) -> Any:
    """NeMo's layers: ``heterogeneous_layer_spec``, ``get_nv_embedding_layer_spec``, ``gemma2_layer_spec`` or
    plain ones."""
    if BLOCKS in fields:
        return get_gpt_heterogeneous_layer_spec(config, use_te=False)
    layer = plain_spec(config, fields)
    if fields["class"] == GEMMA_LAYERS:
        attention, mlp = layer.submodules.self_attention.submodules, layer.submodules.mlp.submodules
        attention.linear_proj = mlp.linear_fc2 = ProjectionThenNorm
        attention.core_attention = dense.soft_capped_attention(fields["attn_logit_softcapping"])
    if sees_both_ways(fields):
        layer.submodules.self_attention.params["attn_mask_type"] = AttnMaskType.padding
    return layer


def build(fields: dict[str, Any], tp: int, pp: int, dtype: torch.dtype) -> GPTModel:
    """The model as NeMo's configure_model builds it from all fields."""
    if fields["class"].startswith("T5"):
        return t5.build(fields, tp, pp, dtype)
    fields = {"bias_activation_fusion": False, **fields}
    if fields["class"] == "Gemma2Config":  # of a GPTModel, which scales no embeddings
        fields["class"] = GEMMA_LAYERS
    dense.TransformerConfig = HeterogeneousTransformerConfig if BLOCKS in fields else TransformerConfig
    dense.GPTModel = mtp.model if fields.get("mtp_num_layers") else GPTModel
    model = plain_build(fields, tp, pp, dtype)
    if fields.get("scale_factor") is not None:  # as Llama31Config.configure_model does
        rope = model.rotary_pos_emb
        names = ("scale_factor", "low_freq_factor", "high_freq_factor", "old_context_len")
        rope.inv_freq = rope._apply_scaling(rope.inv_freq, *(fields[name] for name in names))
    if sees_both_ways(fields):
        model.post_process = False  # as Llama32EmbeddingConfig1B.configure_model does
    if "Reranker" in fields["class"]:  # as ReRankerModel.configure_model does, with one rank
        options = {"bias": False, "skip_bias_add": True, "gather_output": True}
        config = model.config
        model.score = ColumnParallelLinear(
            fields["hidden_size"], 1, config=config, init_method=config.init_method, **options
        )
    return model


def forward(model: GPTModel, ids: torch.Tensor, hidden_size: int, pp: int) -> torch.Tensor | None:
    """Logits, or [batch, length, hidden_size or 1] of a model without a head."""
    if isinstance(model, t5.T5Model):
        return t5.forward(model, ids)
    if model.mtp_process:
        return mtp.forward(model, ids)
    if model.post_process:
        return plain_forward(model, ids, hidden_size, pp)
    batch, length = ids.shape
    positions = torch.arange(length).expand(batch, -1).contiguous()
    with torch.no_grad():
        states = model(ids, positions, torch.zeros(batch, 1, 1, length, dtype=torch.bool)).transpose(0, 1)
        return model.score(states)[0] if hasattr(model, "score") else states


plain_spec, plain_build, plain_forward = dense.spec, dense.build, rank.forward
dense.spec, rank.build, rank.forward = spec, build, forward

if __name__ == "__main__":
    rank.serve()
