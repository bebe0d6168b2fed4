"""Why some mixtures of experts are refused: what megatron-core itself says of them."""

from __future__ import annotations

from typing import Any

import pytest

from nemoconv.errors import UnsupportedArchitecture
from nemoconv.mappings import load_table

megatron = pytest.importorskip("megatron.core", reason="megatron-core is not installed")
pytest.importorskip("transformers")

SMALL: dict[str, Any] = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4}


def refused(architecture: str, reason: str) -> None:
    with pytest.raises(UnsupportedArchitecture, match=reason):
        load_table(architecture)


def test_norms_of_all_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' norms of q and k have a weight for every channel of every head."""
    import transformers
    from megatron.core.transformer import attention
    from megatron.core.transformer.transformer_config import TransformerConfig

    common = {**SMALL, "num_hidden_layers": 2, "num_key_value_heads": 2, "vocab_size": 64}
    del common["num_layers"]
    for name, arguments in {
        "olmoe": {"num_experts": 4, "intermediate_size": 16},
        "minimax_m2": {"num_local_experts": 4, "intermediate_size": 16, "head_dim": 8},
    }.items():
        config = transformers.AutoConfig.for_model(name, **common, **arguments)
        layer = transformers.AutoModel.from_config(config).layers[0].self_attn
        assert (layer.q_norm.weight.shape, layer.k_norm.weight.shape) == ((32,), (16,))
        refused(name, "norms of q and k span all heads")
    # where megatron-core builds its own: of one head each, whatever the layer spec names
    config = TransformerConfig(**SMALL, num_query_groups=2, qk_layernorm=True)
    asked: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(attention.Attention, "__init__", bare_attention)
    monkeypatch.setattr(attention, "build_module", lambda kind, *_, **given: asked.append((kind, given)))
    parts = attention.SelfAttentionSubmodules(
        linear_qkv=lambda *_, **__: None,
        core_attention=None,
        linear_proj=None,
        q_layernorm="q",
        k_layernorm="k",
    )
    attention.SelfAttention(config, parts, layer_number=1)
    assert {kind: given["hidden_size"] for kind, given in asked} == {"q": 8, "k": 8}


def bare_attention(self: Any, config: Any, **_: Any) -> None:
    import torch

    torch.nn.Module.__init__(self)
    self.config, self.pg_collection = config, type("Groups", (), {"tp": None})
    self.query_projection_size, self.kv_projection_size, self.hidden_size_per_attention_head = 32, 16, 8
    self.linear_qkv_out_dim = 64


def test_a_correction_of_softmax() -> None:
    import transformers
    from megatron.core.transformer.transformer_config import TransformerConfig

    experts = {**SMALL, "num_moe_experts": 4, "moe_router_enable_expert_bias": True}
    with pytest.raises(ValueError, match="sigmoid"):
        TransformerConfig(**experts, moe_router_score_function="softmax")
    TransformerConfig(**experts, moe_router_score_function="sigmoid")
    config = transformers.AutoConfig.for_model("ernie4_5_moe")
    assert config.moe_num_experts > 0
    refused("ernie4_5_moe", "softmax plus a correction")
