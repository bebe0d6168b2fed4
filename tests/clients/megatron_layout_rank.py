"""One rank of a Megatron job with uneven or virtual stages, or an optimizer: :mod:`megatron_rank` and more."""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import megatron_rank as rank
import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.enums import ModelType
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from nemoconv.converters.nemo2.context import read_context
from nemoconv.stores.files import SourceDir

#: what io.json says of the layout, in the words of TransformerConfig
LAYOUT = """virtual_pipeline_model_parallel_size num_layers_in_first_pipeline_stage
    num_layers_in_last_pipeline_stage account_for_embedding_in_pipeline_split
    account_for_loss_in_pipeline_split pipeline_model_parallel_layout tensor_model_parallel_size
    pipeline_model_parallel_size""".split()


def read_fields(directory: str) -> dict[str, Any]:
    source = SourceDir(Path(directory))
    fields = read_context(source).fields
    source.close()
    return fields


def build_chunks(fields: dict[str, Any], tp: int, pp: int) -> list[GPTModel]:
    """This rank's runs of layers, one model each, as io.json's own layout has them."""
    settings = rank.LLAMA | {name: fields[name] for name in rank.TRANSFORMER_FIELDS if name in fields}
    said = {name: fields[name] for name in LAYOUT if fields.get(name) is not None}
    assert (said["tensor_model_parallel_size"], said["pipeline_model_parallel_size"]) == (tp, pp)
    config = TransformerConfig(
        **settings, **rank.ON_CPU, **said, params_dtype=torch.float32, pipeline_dtype=torch.float32
    )
    virtual = config.virtual_pipeline_model_parallel_size
    parallel_state.set_virtual_pipeline_model_parallel_world_size(virtual)
    stage, count = parallel_state.get_pipeline_model_parallel_rank(), virtual or 1
    return [
        GPTModel(
            config=config,
            transformer_layer_spec=get_gpt_layer_local_spec(normalization="RMSNorm"),
            vocab_size=fields["vocab_size"],
            max_sequence_length=fields["seq_length"],
            pre_process=(stage, number) == (0, 0),
            post_process=(stage, number) == (pp - 1, count - 1),
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


def compare_layout(directory: str, reference: str, tp: int, pp: int) -> dict[str, Any]:
    """Load a NeMo 2 directory at the layout that it states; how far are its logits from the reference?"""
    fields = read_fields(directory)
    chunks = build_chunks(fields, tp, pp)
    for chunk in chunks:
        for p in chunk.parameters():
            p.data.fill_(float("nan"))
    wanted = {f"model{n}": chunk.sharded_state_dict(prefix="module.") for n, chunk in enumerate(chunks)}
    state, unasked, absent = dist_checkpointing.load(wanted, f"{directory}/weights", strict="return_all")
    unasked = {key.removeprefix("module.decoder.") for key in unasked} - rank.TRANSFORMER_ENGINE_ONLY
    assert (absent, unasked) == (set(), set())
    held = []
    for number, chunk in enumerate(chunks):
        mine = {key.removeprefix("module."): value for key, value in state[f"model{number}"].items()}
        chunk.load_state_dict(mine, strict=False)
        assert not [name for name, p in chunk.named_parameters() if p.isnan().any()]
        held.append([layer.layer_number - 1 for layer in chunk.decoder.layers])
    given = torch.load(reference, weights_only=True)
    out = run_through(chunks, given["ids"], fields["hidden_size"], pp)
    result: dict[str, Any] = {"layers": held}
    if out is not None:
        expected = given["logits"]
        result["diff"] = (out[..., : expected.shape[-1]] - expected).abs().max().item()
    parallel_state.set_virtual_pipeline_model_parallel_world_size(None)
    return result


def rank_file(directory: str, pp: int) -> Path:
    """Where Megatron-LM keeps this rank's checkpoint (get_checkpoint_name)."""
    tensor = parallel_state.get_tensor_model_parallel_rank()
    stage = parallel_state.get_pipeline_model_parallel_rank()
    folder = f"mp_rank_{tensor:02d}_{stage:03d}" if pp > 1 else f"mp_rank_{tensor:02d}"
    return Path(directory) / folder / "model_optim_rng.pt"


def save_rank_files(directory: str, out: str, tp: int, pp: int) -> dict[str, Any]:
    """Load a NeMo 2 directory, and save each rank's own state dict as Megatron-LM does."""
    model = build_chunks(read_fields(directory), tp, pp)[0]
    rank.load(model, f"{directory}/weights", dist_checkpointing.load_content_metadata(f"{directory}/weights"))
    args = argparse.Namespace(
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        params_dtype=torch.float32,
        model_type=ModelType.encoder_or_decoder,
        make_vocab_size_divisible_by=1,
        padded_vocab_size=read_fields(directory)["vocab_size"],
        betas=(0.9, 0.95),
        data_path=["a", None],
    )
    file = rank_file(out, pp)
    file.parent.mkdir(parents=True)
    content = {"args": args, "checkpoint_version": 3.0, "iteration": 7, "model": model.state_dict()}
    torch.save({**content, "rng_state": [{"torch_rng_state": torch.get_rng_state()}]}, file)
    return {}


def compare_rank_files(directory: str, out: str, reference: str, tp: int, pp: int) -> dict[str, Any]:
    """Load a rank's own file strictly, at the layout that the NeMo 2 ``directory`` states."""
    fields = read_fields(directory)
    chunks = build_chunks(fields, tp, pp)
    content = torch.load(rank_file(out, pp), weights_only=False)
    names = [f"model{n}" for n in range(len(chunks))] if len(chunks) > 1 else ["model"]
    assert [key for key in content if key.startswith("model")] == names
    for name, chunk in zip(names, chunks, strict=True):
        for p in chunk.parameters():
            p.data.fill_(float("nan"))
        chunk.load_state_dict(content[name], strict=True)
    args = vars(content["args"])
    given = torch.load(reference, weights_only=True)
    out_ = run_through(chunks, given["ids"], fields["hidden_size"], pp)
    result = {
        "rest": sorted(content.keys() - set(names)),
        "sizes": [args["tensor_model_parallel_size"], args["pipeline_model_parallel_size"]],
        "others": [str(args[key]) for key in ("params_dtype", "model_type", "betas", "data_path")],
    }
    if out_ is not None:
        expected = given["logits"]
        result["diff"] = (out_[..., : expected.shape[-1]] - expected).abs().max().item()
    parallel_state.set_virtual_pipeline_model_parallel_world_size(None)
    return result


def run_through(chunks: list[GPTModel], ids: torch.Tensor, hidden_size: int, pp: int) -> torch.Tensor | None:
    """Logits on the last stage: all runs of layers in model order, from rank to rank."""
    batch, length = ids.shape
    positions = torch.arange(length).expand(batch, -1).contiguous()
    mask = torch.triu(torch.ones(1, 1, length, length, dtype=torch.bool), diagonal=1)
    stage = parallel_state.get_pipeline_model_parallel_rank()
    ranks = parallel_state.get_pipeline_model_parallel_group()
    members = dist.get_process_group_ranks(ranks)
    with torch.no_grad():
        for number, chunk in enumerate(chunks):
            if (stage, number) != (0, 0):
                hidden = torch.empty(length, batch, hidden_size)
                dist.recv(hidden, src=members[(stage - 1) % pp])
                chunk.set_input_tensor(hidden)
            out = chunk(ids, positions, mask)
            if (stage, number) == (pp - 1, len(chunks) - 1):
                return out
            if pp > 1:
                dist.send(out.contiguous(), dst=members[(stage + 1) % pp])
    return None


def load_optimizer(
    directory: str, first: str, second: str, tp: int, pp: int, optimizer: str, metadata: dict[str, Any]
) -> dict[str, Any]:
    """Load weights and optimizer of two checkpoints at this layout: is every bit of them the same?"""
    fields = read_fields(directory)
    model = rank.build(fields, tp, pp, torch.bfloat16)
    found = []
    for path in (first, second):
        state = model.sharded_state_dict(prefix="module.", metadata=metadata)
        state["optimizer"] = rank.adam(model, state, optimizer)
        found.append(dist_checkpointing.load(state, path))
    a, b = (dict(flat(state)) for state in found)
    assert a.keys() == b.keys()
    same = [name for name in a if a[name].view(torch.uint8).equal(b[name].view(torch.uint8))]
    moments = sum(a[name].abs().sum().item() for name in a if "exp_avg" in name)
    return {"tensors": len(a), "same": len(same), "moments": moments}


def deal_layers(cases: list[dict[str, Any]], tp: int, pp: int) -> dict[str, Any]:
    """[first layer, number of layers] of every stage in model order, by megatron-core's own functions."""
    dealt = []
    for case in cases:
        virtual = case["virtual_pipeline_model_parallel_size"]
        config = SimpleNamespace(**case, pipeline_model_parallel_layout=None)
        found = []
        for number, stage in product(range(virtual or 1), range(case["pipeline_model_parallel_size"])):
            at = {"vp_stage": number if virtual else None, "pp_rank": stage}
            found.append([get_transformer_layer_offset(config, **at), get_num_layers_to_build(config, **at)])
        dealt.append(found)
    return {"dealt": dealt}


def group_ranks(cases: list[dict[str, int]], tp: int, pp: int) -> dict[str, Any]:
    """The tensor-parallel groups of every case, as megatron-core's parallel_state orders ranks."""
    order = "tp-cp-ep-dp-pp"
    return {
        "groups": [parallel_state.RankGenerator(**case, cp=1, order=order).get_ranks("tp") for case in cases]
    }


def count_layers(texts: list[str], tp: int, pp: int) -> dict[str, Any]:
    """Decoder layers of every stage in pipeline_model_parallel_layout's notation."""
    parsed = map(PipelineParallelLayerLayout.parse_str_to_list, texts)
    return {"counts": [[sum(kind.name == "decoder" for kind in stage) for stage in one] for one in parsed]}


def flat(value: Any, at: str = "") -> Any:
    """Every tensor of a nested state by its path."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from flat(item, f"{at}.{key}")
    if isinstance(value, torch.Tensor):
        yield at, value.detach().reshape(-1)


rank.JOBS |= {
    "compare_layout": compare_layout,
    "load_optimizer": load_optimizer,
    "save_rank_files": save_rank_files,
    "compare_rank_files": compare_rank_files,
    "deal_layers": deal_layers,
    "group_ranks": group_ranks,
    "count_layers": count_layers,
}

if __name__ == "__main__":
    rank.serve()
