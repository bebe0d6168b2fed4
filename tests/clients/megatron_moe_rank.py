"""One rank of a Megatron job with a mixture of experts: :mod:`megatron_rank` and one more kind of job."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import megatron_rank as rank
import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.activations import quick_gelu
from megatron.core.fusions import fused_softmax
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_decoder_block_spec,
    get_gpt_layer_local_spec,
    get_gpt_mtp_block_spec,
)
from megatron.core.transformer import multi_latent_attention
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.moe import grouped_gemm_util, moe_utils
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

from nemoconv.converters.nemo2.context import read_context
from nemoconv.mappings import table_for_nemo
from nemoconv.stores.files import SourceDir

multi_latent_attention.HAVE_TE = False  # what it imports from there is None
moe_utils.te_general_gemm = None  # the router asks for it, and an import without TransformerEngine forgets it
#: modules that keep an ``_extra_state`` with TransformerEngine only
TRANSFORMER_ENGINE_ONLY = (
    "input_layernorm",
    "pre_mlp_layernorm",
    "self_attention.core_attention",
    "self_attention.q_layernorm",
    "self_attention.k_layernorm",
)


MTP_NORMS = ("enorm", "hnorm", "final_layernorm")
ACTIVATIONS = {"silu": torch.nn.functional.silu, "quick_gelu": quick_gelu}
own_window_mask = fused_softmax.get_sliding_window_causal_mask


def window_mask(*args: Any) -> torch.Tensor:
    """megatron-core's own, which asks for a CUDA tensor."""
    with rank.OnCPU():
        return own_window_mask(*args)


fused_softmax.get_sliding_window_causal_mask = window_mask


class LatentAttention(DotProductAttention):
    """megatron-core's own attention, which lacks only the arguments that TransformerEngine's has."""

    def __init__(self, *args: Any, k_channels: int = 0, v_channels: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.hidden_size_per_partition = v_channels * self.num_attention_heads_per_partition


def as_transformer_engine_names_it(layer: Any, latent: bool) -> None:
    """The norm before experts keeps its name; in a dense layer it is a part of linear_fc1. The norms of
    latents are parts of the projections after them, and the one before latent attention stands alone."""
    names = dict(layer.submodules.sharded_state_dict_keys_map)
    if "experts" in getattr(layer.submodules.mlp.submodules, "__dataclass_fields__", {}):
        names.pop("pre_mlp_layernorm.", None)
    else:
        names["pre_mlp_layernorm."] = "mlp.linear_fc1.layer_norm_"
    if latent:
        names.pop("input_layernorm.", None)
        names |= {
            f"self_attention.{x}_layernorm.": f"self_attention.linear_{x}_up_proj.layer_norm_"
            for x in ("q", "kv")
        }
    layer.submodules.sharded_state_dict_keys_map = names


def one_by_one(a: torch.Tensor, b: torch.Tensor, sizes: torch.Tensor, trans_b: bool) -> torch.Tensor:
    """What the kernel of GroupedMLP computes, which exists for CUDA only."""
    assert not trans_b
    return torch.cat([part @ b[expert] for expert, part in enumerate(a.split(sizes.tolist()))])


grouped_gemm_util.assert_grouped_gemm_is_available = lambda: None
grouped_gemm_util.ops = SimpleNamespace(gmm=one_by_one)


def build(fields: dict[str, Any], tp: int, pp: int, ep: int, grouped: bool = False) -> GPTModel:
    """The part of a model that this rank holds, in float32, from what io.json says."""
    latent = fields.get("multi_latent_attention", False)
    kind = MLATransformerConfig if latent else TransformerConfig
    known = {field.name for field in dataclasses.fields(kind)}
    told = {name: value for name, value in fields.items() if name in known}
    config = kind(
        **rank.LLAMA
        | told
        | rank.ON_CPU
        | {
            "activation_func": ACTIVATIONS[fields["activation_func"].name],
            "bf16": False,
            "fp16": False,
            "params_dtype": torch.float32,
            "pipeline_dtype": torch.float32,
            "tensor_model_parallel_size": tp,
            "pipeline_model_parallel_size": pp,
            "expert_model_parallel_size": ep,
            "expert_tensor_parallel_size": parallel_state.get_expert_tensor_parallel_world_size(),
            "sequence_parallel": False,
            "moe_token_dispatcher_type": "allgather",
            "moe_grouped_gemm": grouped,
            "moe_use_legacy_grouped_gemm": grouped,
        }
    )
    for name, value in fields.items():
        if name.startswith("yarn_"):  # fields of NeMo's class that megatron-core asks its config for
            setattr(config, name, value)
    every = fields.get("nope_layer_interval") or 0
    if every:
        config.no_rope_freq = [int((layer + 1) % every == 0) for layer in range(config.num_layers)]
    if isinstance(config.moe_layer_freq, list) or every:
        spec = get_gpt_decoder_block_spec(
            config, use_transformer_engine=False, normalization="RMSNorm", qk_l2_norm=config.qk_l2_norm
        )
        layers = spec.layer_specs = [copy.deepcopy(layer) for layer in spec.layer_specs]
    else:
        spec = get_gpt_layer_local_spec(
            num_experts=config.num_moe_experts,
            moe_grouped_gemm=grouped,
            moe_use_legacy_grouped_gemm=grouped,
            qk_layernorm=config.qk_layernorm,
            multi_latent_attention=latent,
            normalization="RMSNorm",
        )
        layers = [spec]
    first = parallel_state.get_pipeline_model_parallel_rank() * config.num_layers // pp
    for number, layer in enumerate(layers, first + 1):
        if every and number % every == 0:  # as NeMo's get_llama4_layer_spec does
            heads = layer.submodules.self_attention.submodules
            heads.q_layernorm = heads.k_layernorm = None
    for layer in layers:
        as_transformer_engine_names_it(layer, latent)
        if latent:
            layer.submodules.self_attention.submodules.core_attention = LatentAttention
    stage = parallel_state.get_pipeline_model_parallel_rank()
    mtp = None
    if config.mtp_num_layers:  # as NeMo's mtp_block_spec does
        mtp = get_gpt_mtp_block_spec(config, spec, use_transformer_engine=False)
    return (
        GPTModel(
            config=config,
            transformer_layer_spec=spec,
            mtp_block_spec=mtp,
            vocab_size=fields["vocab_size"],
            max_sequence_length=fields["seq_length"],
            pre_process=stage == 0,
            post_process=stage == pp - 1,
            parallel_output=False,
            share_embeddings_and_output_weights=fields["share_embeddings_and_output_weights"],
            position_embedding_type=fields["position_embedding_type"],
            rotary_base=fields["rotary_base"],
            rotary_percent=fields["rotary_percent"],
            seq_len_interpolation_factor=fields.get("seq_len_interpolation_factor"),
        )
        .float()
        .eval()
    )


def load_moe(
    directory: str, tp: int, pp: int, ep: int, grouped: bool = False
) -> tuple[GPTModel, dict[str, Any], dict[str, Any]]:
    """The model of a NeMo 2 directory in float32, its fields, and what was loaded."""
    fields = read_fields(directory)
    model = build(fields, tp, pp, ep, grouped)
    weights = f"{directory}/weights"
    stored = dist_checkpointing.load_tensors_metadata(weights)
    result = {"tensors": len(stored)}
    rank.TRANSFORMER_ENGINE_ONLY |= {
        f"layers.{layer}{name}._extra_state"
        for layer in ("", *(f"{number}." for number in range(fields["num_layers"])))
        for name in TRANSFORMER_ENGINE_ONLY
    } | {
        f"module.mtp.layers.{depth}.{name}._extra_state"
        for depth in range(fields.get("mtp_num_layers") or 0)
        for name in (*MTP_NORMS, *(f"transformer_layer.{name}" for name in TRANSFORMER_ENGINE_ONLY))
    }
    result |= rank.load(model, weights, dist_checkpointing.load_content_metadata(weights))
    return model, fields, result


def read_fields(directory: str) -> dict[str, Any]:
    """What io.json says, and NeMo's defaults for what it leaves out."""
    source = SourceDir(Path(directory))
    context = read_context(source)
    source.close()
    table = table_for_nemo(context.config_class, context.fields, "here")
    defaults = table.nemo.defaults[context.config_class.name]
    return {name: value for name, value in defaults.items() if value is not None} | context.fields


def compare_moe(
    directory: str, reference: str, tp: int, pp: int, ep: int, etp: int | None = None, grouped: bool = False
) -> dict[str, Any]:
    """Load a NeMo 2 directory in float32; how far are its logits from the reference {ids, logits}?"""
    model, fields, result = load_moe(directory, tp, pp, ep, grouped)
    model.config.bf16 = grouped  # GroupedMLP asks for it, and computes in any dtype
    given = torch.load(reference, weights_only=True)
    out = rank.forward(model, given["ids"], fields["hidden_size"], pp)
    if out is not None:
        expected = given["logits"]
        result["diff"] = (out[..., : expected.shape[-1]] - expected).abs().max().item()
    return result


def save_moe(
    directory: str,
    out: str,
    tp: int,
    pp: int,
    ep: int,
    grouped: bool,
    metadata: dict[str, Any] | None = None,
    etp: int | None = None,
) -> dict[str, Any]:
    """Load a NeMo 2 directory and let megatron-core save it: torch_dist with this content ``metadata``, or
    without any a state dict for each rank."""
    model, _, _ = load_moe(directory, tp, pp, ep, grouped)
    if metadata is None:
        place = Path(out) / f"mp_rank_{parallel_state.get_tensor_model_parallel_rank():02d}"
        place.mkdir(parents=True)
        torch.save({"model": model.state_dict(), "iteration": 0}, place / "model_optim_rng.pt")
        return {"keys": sorted(model.state_dict())}
    if torch.distributed.get_rank() == 0:
        Path(out).mkdir(parents=True)
    torch.distributed.barrier()
    state = model.sharded_state_dict(prefix="module.", metadata=metadata)
    dist_checkpointing.save(state, out, content_metadata=metadata)
    return {"keys": sorted(dist_checkpointing.load_tensors_metadata(out))}


class WithLabels:
    """A model that is called with labels: megatron-core runs multi-token prediction only then."""

    def __init__(self, model: GPTModel, labels: torch.Tensor) -> None:
        self.model, self.labels, self.set_input_tensor = model, labels, model.set_input_tensor

    def __call__(self, *args: Any) -> torch.Tensor:
        return self.model(*args, labels=self.labels)


def compare_mtp(
    directory: str, reference: str, tp: int, pp: int, ep: int, etp: int | None = None
) -> dict[str, Any]:
    """The same for {ids, logits, mtp}: the logits of each multi-token prediction layer, too."""
    model, fields, result = load_moe(directory, tp, pp, ep)
    given, seen = torch.load(reference, weights_only=True), []
    if model.post_process:
        model.output_layer.register_forward_hook(lambda _, __, out: seen.append(out[0].transpose(0, 1)))
        model.compute_language_model_loss = lambda labels, _: torch.zeros(labels.shape)
    rank.forward(WithLabels(model, given["ids"]), given["ids"], fields["hidden_size"], pp)
    if seen:
        *mtp, logits = seen
        pairs = [(logits, given["logits"]), *zip(mtp, given["mtp"], strict=True)]
        result["diffs"] = []
        for depth, (ours, theirs) in enumerate(pairs):
            known = ours.shape[1] - depth  # the tokens behind the last one are not given
            result["diffs"].append((ours - theirs)[:, :known].abs().max().item())
    return result


rank.JOBS["compare_moe"] = compare_moe
rank.JOBS["compare_mtp"] = compare_mtp
rank.JOBS["save_moe"] = save_moe

if __name__ == "__main__":
    rank.serve()
