"""One rank of a Megatron job with a BERT: :mod:`megatron_rank` with another build.

NeMo puts its own norms after attention and MLP (``bert/model/bert_spec.py``); plain ones that compute the same
stand in. Unlike NeMo, whose output layer leaves its bias out, megatron-core's adds it, as transformers does.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import megatron_dense_rank as dense
import megatron_rank as rank
import torch
from megatron.core.models.bert.bert_layer_specs import bert_layer_local_spec
from megatron.core.models.bert.bert_lm_head import BertLMHead
from megatron.core.models.bert.bert_model import BertModel
from megatron.core.models.bert.pooler import Pooler
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer

TOKENIZER_SIZE = 130
rank.TRANSFORMER_ENGINE_ONLY |= {"module.output_layer._extra_state"} | {
    f"module.encoder.layers.{name}._extra_state"
    for name in ("self_attention.core_attention", "post_att_layernorm", "post_mlp_layernorm")
}


class Layer(TransformerLayer):
    """NeMo's ``TransformerLayerWithPostLNSupport``."""

    def __init__(self, config: TransformerConfig, *args: Any, **rest: Any) -> None:
        super().__init__(config, *args, **rest)
        self.post_att_layernorm = norm(config)
        self.post_mlp_layernorm = norm(config)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor, **_: Any
    ) -> tuple[torch.Tensor, None]:
        out, bias = self.self_attention(hidden_states, attention_mask=attention_mask)
        x = self.post_att_layernorm(hidden_states + out + bias)
        out, bias = self.mlp(x)
        return self.post_mlp_layernorm(x + out + bias), None


def norm(config: TransformerConfig) -> torch.nn.Module:
    return WrappedTorchNorm(config, config.hidden_size, config.layernorm_epsilon)


def spec() -> ModuleSpec:
    parts = bert_layer_local_spec.submodules
    plain = dataclasses.replace(parts, input_layernorm=IdentityOp, pre_mlp_layernorm=IdentityOp)
    return ModuleSpec(module=Layer, submodules=dataclasses.replace(plain, sharded_state_dict_keys_map={}))


def build(fields: dict[str, Any], tp: int, pp: int, dtype: torch.dtype) -> BertModel:
    """NeMo's ``MCoreBertModelWrapperWithPostLNSupport``."""
    known = {field.name for field in dataclasses.fields(TransformerConfig)}
    told = {name: value for name, value in fields.items() if name in known and value is not None}
    own = {"activation_func": dense.ACTIVATIONS[fields["activation_func"].name], "params_dtype": dtype}
    own |= {"bias_activation_fusion": fields["bias_activation_fusion"], "bf16": False, "fp16": False}
    config = TransformerConfig(**(told | rank.ON_CPU | own))
    step = fields["make_vocab_size_divisible_by"] * tp
    model = BertModel(
        config=config,
        num_tokentypes=fields["num_tokentypes"],
        transformer_layer_spec=spec(),
        vocab_size=-(-TOKENIZER_SIZE // step) * step,
        max_sequence_length=fields["seq_length"],
        parallel_output=False,
        share_embeddings_and_output_weights=fields["share_embeddings_and_output_weights"],
        add_binary_head=fields["bert_binary_head"],
    )
    model.encoder = TransformerBlock(config=config, spec=spec(), post_layer_norm=False)
    model.encoder.initial_layernorm = norm(config)
    model.lm_head = BertLMHead(config.hidden_size, config) if fields["add_lm_head"] else None
    model.pooler = Pooler(config.hidden_size, config.init_method, config) if fields["add_pooler"] else None
    return model.to(dtype).eval()


def forward(model: BertModel, ids: torch.Tensor, hidden_size: int, pp: int) -> torch.Tensor:
    """[batch, length, ...] of states or logits, and below them what the pooler or its head says."""
    batch, length = ids.shape
    positions = torch.arange(length).expand(batch, -1).contiguous()
    mask = torch.zeros(batch, 1, 1, length, dtype=torch.bool)
    with torch.no_grad():
        x = model.encoder.initial_layernorm(model.embedding(ids, positions, ids % 2))
        out = states = model.encoder(x, mask)
        if model.lm_head is not None:
            weight = model.shared_embedding_or_output_weight()
            out, bias = model.output_layer(model.lm_head(states), weight=weight)
            assert bias is None
        last = []
        if model.pooler is not None:
            pooled = model.pooler(states, 0)
            last = [pooled if model.binary_head is None else model.binary_head(pooled)]
    return below(out.transpose(0, 1), *last)


def below(out: torch.Tensor, *last: torch.Tensor) -> torch.Tensor:
    """A further row for each text, as wide as the others."""
    wide = [torch.nn.functional.pad(x, (0, out.shape[-1] - x.shape[-1])) for x in last]
    return torch.cat([out, *(x[:, None] for x in wide)], 1)


rank.read_context = dense.context_with_defaults
rank.build, rank.forward = build, forward

if __name__ == "__main__":
    rank.serve()
