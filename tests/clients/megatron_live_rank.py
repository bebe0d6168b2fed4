"""One rank of a Megatron job whose model gets its weights from the memory of other ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import megatron_layout_rank as layout_rank
import megatron_moe_rank as moe_rank
import megatron_rank as rank
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from safetensors.torch import load_file

from nemoconv.live import Layout, reshard_state_dict


def compare_live(
    directory: str,
    hf: str,
    reference: str,
    first: dict[str, int],
    last: dict[str, int],
    tp: int,
    pp: int,
    ep: int = 1,
    spoil: bool = False,
) -> dict[str, Any]:
    """Rank 0 alone has Hugging Face's tensors. Everybody gets a shard in the layout ``first``, from that one
    in ``last``, into the parameters of a model, which computes logits; then all goes back to rank 0.

    ``directory`` is a NeMo 2 directory for the model's fields, stating the layout ``last``. ``spoil``: two
    rows of a matrix change places before the logits.
    """
    fields = moe_rank.read_fields(directory)
    if fields.get("num_moe_experts"):
        chunks = [moe_rank.build(fields, tp, pp, ep)]
    else:
        fields = layout_rank.read_fields(directory)
        chunks = layout_rank.build_chunks(fields, tp, pp)
    for chunk in chunks:
        for p in chunk.parameters():
            p.data.fill_(float("nan"))
    config = json.loads((Path(hf) / "config.json").read_text())
    whole = None
    if dist.get_rank() == 0:
        files = sorted(Path(hf).glob("*.safetensors"))
        whole = {name: t.float() for file in files for name, t in load_file(file).items()}
    one, between, other = Layout(), Layout(**first), Layout(**last)
    shard = reshard_state_dict(
        whole, source=one, target=between, config=config, source_ranks=[0], source_names="hf"
    )
    held: Any = [chunk.state_dict() for chunk in chunks]
    held = held if len(chunks) > 1 else held[0]
    reshard_state_dict(shard, source=between, target=other, config=config, out=held)
    back = reshard_state_dict(
        held, source=other, target=one, config=config, target_ranks=[0], target_names="hf"
    )
    assert not [name for chunk in chunks for name, p in chunk.named_parameters() if p.isnan().any()]
    if spoil:
        weight = chunks[0].decoder.layers[0].mlp.linear_fc1.weight.data
        weight[:2] = weight[:2].flip(0)
    given = torch.load(reference, weights_only=True)
    out = layout_rank.run_through(chunks, given["ids"], fields["hidden_size"], pp)
    result: dict[str, Any] = {"given": len(shard), "same": []}
    if whole is not None:
        assert isinstance(back, dict)
        result["same"] = [name for name in whole if back[name].equal(whole[name])]
        assert len(result["same"]) == len(whole) == len(back)
    if out is not None:
        expected = given["logits"]
        result["diff"] = (out[..., : expected.shape[-1]] - expected).abs().max().item()
    parallel_state.set_virtual_pipeline_model_parallel_world_size(None)
    return result


rank.JOBS["compare_live"] = compare_live

if __name__ == "__main__":
    rank.serve()
