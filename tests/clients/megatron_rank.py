"""One rank of a Megatron job: ``python megatron_rank.py`` answers one line of JSON for each it is sent.

Everything here is megatron-core's and torch's own code. Of nemoconv only the reader of ``context/`` is
used, so that the model is built from the fields that NeMo would build it from.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from megatron.core import dist_checkpointing, parallel_state, tensor_parallel  # noqa: E402
from megatron.core.models.gpt import GPTModel  # noqa: E402
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec  # noqa: E402
from megatron.core.transformer.enums import AttnBackend  # noqa: E402
from megatron.core.transformer.transformer_config import TransformerConfig  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402

from nemoconv.converters.nemo2.context import read_context  # noqa: E402
from nemoconv.stores.files import SourceDir  # noqa: E402

# NeMo's LlamaConfig on top of megatron-core's own defaults (nemo/collections/llm/gpt/model/llama.py)
LLAMA = {
    "normalization": "RMSNorm",
    "activation_func": torch.nn.functional.silu,
    "gated_linear_unit": True,
    "add_bias_linear": False,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
}
# what has no CPU kernel, and no need to draw weights that are about to be replaced
ON_CPU = dict.fromkeys(
    """bias_activation_fusion bias_dropout_fusion masked_softmax_fusion gradient_accumulation_fusion
    apply_rope_fusion persist_layer_norm perform_initialization moe_permute_fusion
    moe_shared_expert_overlap""".split(),
    False,
) | {"use_cpu_initialization": True, "attention_backend": AttnBackend.auto}
TRANSFORMER_FIELDS = """
    num_layers hidden_size ffn_hidden_size num_attention_heads num_query_groups kv_channels layernorm_epsilon
    gated_linear_unit add_bias_linear attention_dropout init_method_std
    """.split()

# megatron-core 0.16 asks for these with its TransformerEngine layers, or did in older versions
TRANSFORMER_ENGINE_ONLY = {
    "layers.self_attention.core_attention._extra_state",
    "final_layernorm._extra_state",
}


def answer_cuda_questions() -> None:
    """What megatron-core asks of CUDA on its way, without needing the answer on a CPU."""
    torch.cuda.current_device = lambda: torch.device("cpu")
    torch.cuda.synchronize = torch.cuda.empty_cache = lambda *_: None
    torch.Tensor.cuda = lambda self, *_, **__: self
    tracker = tensor_parallel.get_cuda_rng_tracker()
    tracker.fork = lambda *_, **__: contextlib.nullcontext()  # dropout is 0


def build(fields: dict[str, Any], tp: int, pp: int, dtype: torch.dtype) -> GPTModel:
    """The part of a model that this rank holds, as NeMo's configure_model builds it from io.json."""
    stage = parallel_state.get_pipeline_model_parallel_rank()
    settings = LLAMA | {name: fields[name] for name in TRANSFORMER_FIELDS if name in fields}
    config = TransformerConfig(
        **settings,
        **ON_CPU,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        params_dtype=dtype,
        pipeline_dtype=dtype,
    )
    model = GPTModel(
        config=config,
        transformer_layer_spec=get_gpt_layer_local_spec(normalization="RMSNorm"),
        vocab_size=fields["vocab_size"],
        max_sequence_length=fields["seq_length"],
        pre_process=stage == 0,
        post_process=stage == pp - 1,
        parallel_output=False,
        share_embeddings_and_output_weights=fields["share_embeddings_and_output_weights"],
        position_embedding_type="rope",
        rotary_base=fields["rotary_base"],
        seq_len_interpolation_factor=fields.get("seq_len_interpolation_factor"),
    )
    if "scale_factor" in fields:  # as Llama31Config.configure_model does
        rope = model.rotary_pos_emb
        rope.inv_freq = rope._apply_scaling(
            rope.inv_freq,
            fields["scale_factor"],
            fields["low_freq_factor"],
            fields["high_freq_factor"],
            fields["old_context_len"],
        )
    return model.to(dtype).eval()


def load(model: GPTModel, weights: str, metadata: dict[str, Any] | None = None) -> dict[str, Any]:
    """Fill every parameter, NaN before, from a checkpoint that must hold all of them and nothing else."""
    for p in model.parameters():
        p.data.fill_(float("nan"))
    wanted = model.sharded_state_dict(prefix="module.", metadata=metadata)
    state, unasked, absent = dist_checkpointing.load(
        wanted, weights, strict="return_all", validate_access_integrity=True
    )
    unasked = {key.removeprefix("module.decoder.") for key in unasked} - TRANSFORMER_ENGINE_ONLY
    mine = {k.removeprefix("module."): v for k, v in state.items() if k.startswith("module.")}
    loaded = model.load_state_dict(mine, strict=False)  # the rest is what common.pt holds
    stray = [k for k in (*loaded.missing_keys, *loaded.unexpected_keys) if "_extra_state" not in k]
    empty = [name for name, p in model.named_parameters() if p.isnan().any()]
    assert not absent, f"not in the checkpoint: {sorted(absent)}"
    assert not unasked, f"in the checkpoint, but nobody asks for it: {sorted(unasked)}"
    assert not stray, f"not of this model, or not given: {stray}"
    assert not empty, f"not filled: {empty}"
    return {"parameters": sum(p.numel() for p in model.parameters())}


def forward(model: GPTModel, ids: torch.Tensor, hidden_size: int, pp: int) -> torch.Tensor | None:
    """Logits on the last stage, None on the others."""
    batch, length = ids.shape
    positions = torch.arange(length).expand(batch, -1).contiguous()
    mask = torch.triu(torch.ones(1, 1, length, length, dtype=torch.bool), diagonal=1)
    stage = parallel_state.get_pipeline_model_parallel_rank()
    with torch.no_grad():
        if stage > 0:
            hidden = torch.empty(length, batch, hidden_size)
            dist.recv(hidden, src=parallel_state.get_pipeline_model_parallel_prev_rank())
            model.set_input_tensor(hidden)
        out = model(ids, positions, mask)
        if stage < pp - 1:
            dist.send(out.contiguous(), dst=parallel_state.get_pipeline_model_parallel_next_rank())
            return None
        return out


def compare(directory: str, reference: str, tp: int, pp: int) -> dict[str, Any]:
    """Load a NeMo 2 directory in float32; how far are its logits from the reference {ids, logits}?"""
    source = SourceDir(Path(directory))
    fields = read_context(source).fields
    source.close()
    model = build(fields, tp, pp, torch.float32)
    metadata = dist_checkpointing.load_content_metadata(f"{directory}/weights")
    result = load(model, f"{directory}/weights", metadata)
    given = torch.load(reference, weights_only=True)
    out = forward(model, given["ids"], fields["hidden_size"], pp)
    if out is not None:
        expected = given["logits"]
        ours = out[..., : expected.shape[-1]]
        result["diff"] = (ours - expected).abs().max().item()
        result["argmax_equal"] = bool((ours.argmax(-1) == expected.argmax(-1)).all())
    return result


def resave(
    directory: str, out: str, tp: int, pp: int, metadata: dict[str, Any], prefix: str, optimizer: str
) -> dict[str, Any]:
    """Load a NeMo 2 directory in its own dtype, and let megatron-core save it."""
    source = SourceDir(Path(directory))
    fields = read_context(source).fields
    source.close()
    dtype = getattr(torch, fields["params_dtype"].name)
    model = build(fields, tp, pp, dtype)
    load(model, f"{directory}/weights")
    state = model.sharded_state_dict(prefix=prefix, metadata=metadata)
    if optimizer:
        state["optimizer"] = adam(model, state, optimizer)
    if dist.get_rank() == 0:
        Path(out).mkdir(parents=True)
    dist.barrier()
    dist_checkpointing.save(state, out, content_metadata=metadata)
    return {"keys": len(state)}


class OnCPU(TorchFunctionMode):
    """Where the optimizer makes or expects tensors on CUDA, those on the CPU will do."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = "cpu"
        result = func(*args, **kwargs)
        return (
            result.replace("torch.", "torch.cuda.")
            if func is torch.Tensor.type and len(args) == 1
            else result
        )


def adam(model: GPTModel, state: dict[str, Any], sharding: str) -> dict[str, Any]:
    """The sharded state of megatron-core's Adam: float32 main parameters and two moments.

    The learning rate of its one step is 0, so that the weights stay what they were. ``sharding`` is "none", or how the distributed optimizer is to cut its state.
    """
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    distributed = sharding != "none"
    parallel = DistributedDataParallelConfig(use_distributed_optimizer=distributed)
    settings = OptimizerConfig(
        optimizer="adam",
        lr=0.0,
        weight_decay=0.0,
        clip_grad=0.0,
        bf16=True,
        params_dtype=torch.bfloat16,
        use_distributed_optimizer=distributed,
    )
    with OnCPU():
        wrapped = DistributedDataParallel(model.config, parallel, model)
        optimizer = get_megatron_optimizer(settings, [wrapped])
        for p in model.parameters():
            p.main_grad.normal_()
        optimizer.step()
        metadata = {"distrib_optim_sharding_type": sharding} if distributed else None
        return optimizer.sharded_state_dict(state, metadata=metadata)


JOBS = {"compare": compare, "resave": resave}


def serve() -> None:
    """Answer jobs until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the libraries print is no answer
    torch.set_num_threads(1)
    answer_cuda_questions()
    for line in sys.stdin:
        job = json.loads(line)
        try:
            address = f"tcp://127.0.0.1:{job['port']}"
            dist.init_process_group("gloo", address, rank=job["rank"], world_size=job["world"])
            args = job["args"]
            parallel_state.initialize_model_parallel(
                args["tp"],
                args["pp"],
                expert_model_parallel_size=args.get("ep", 1),
                expert_tensor_parallel_size=args.get("etp"),
            )
            answer = {"result": JOBS[job["do"]](**job["args"])}
            dist.barrier()
            parallel_state.destroy_model_parallel()
            dist.destroy_process_group()
        except BaseException:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)
        if "error" in answer:
            return  # the other ranks may wait for this one: the parent ends them all


if __name__ == "__main__":
    serve()
