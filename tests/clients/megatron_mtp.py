"""Dense decoders with multi-token prediction layers: megatron-core's own, and what they predict."""

from __future__ import annotations

from typing import Any

import megatron_rank as rank
import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_mtp_block_spec

_INNER = ("self_attention.core_attention", "input_layernorm", "pre_mlp_layernorm")
rank.TRANSFORMER_ENGINE_ONLY |= {
    f"module.mtp.layers.{depth}.{name}._extra_state"
    for depth in range(2)
    for name in ("enorm", "hnorm", "final_layernorm", *(f"transformer_layer.{inner}" for inner in _INNER))
}


class Predicted(Exception):
    """What the layers gave. It stops a forward pass, which goes on to losses that nobody needs."""


def model(config: Any, transformer_layer_spec: Any, **rest: Any) -> GPTModel:
    """As NeMo's ``mtp_block_spec`` has it."""
    mtp = get_gpt_mtp_block_spec(config, transformer_layer_spec, use_transformer_engine=False)
    return GPTModel(config, transformer_layer_spec, mtp_block_spec=mtp, **rest)


def forward(model: GPTModel, ids: torch.Tensor) -> torch.Tensor:
    """[batch, (1 + layers) * length, vocab_size]: logits of the decoder, then of each multi-token prediction layer."""
    batch, length = ids.shape
    positions = torch.arange(length).expand(batch, -1).contiguous()
    mask = torch.triu(torch.ones(1, 1, length, length, dtype=torch.bool), diagonal=1)

    def stop(_: Any, __: Any, out: torch.Tensor) -> None:
        raise Predicted(out)

    with torch.no_grad():
        handle = model.mtp.register_forward_hook(stop)
        try:
            model(ids, positions, mask)
        except Predicted as predicted:
            states = predicted.args[0].chunk(1 + model.config.mtp_num_layers, 0)
        finally:
            handle.remove()
        return torch.cat([model.output_layer(each)[0].transpose(0, 1) for each in states], 1)
