"""The same weights through other tools, each in a child, beside ``cp -r`` and nemoconv.

Peers: transformers (load and save_pretrained, HF to HF), torch DCP (load_file and dcp.save: no change of
names or layout), and megatron-core (fusing in torch, dist_checkpointing.save: the same job as hf2nemo2).
A peer that is not installed, or that fails, is skipped with its reason.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import models
from measure import MIB, Summary

HEAD = ("tool", "s", "/ cp", "s without imports", "CPU s", "/ cp", "peak anon MiB", "peak RSS MiB")


def transformers_save(source: Path, out: Path) -> Callable[[], None]:
    """Load a model as users do and save it again."""
    import torch
    from transformers import AutoModelForCausalLM

    def work() -> None:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
        model.save_pretrained(out)

    return work


def torch_dcp_save(source: Path, out: Path) -> Callable[[], None]:
    """Load a state dict and save it as a distributed checkpoint, without a process group."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import FileSystemWriter

    def work() -> None:
        dcp.save(_load(source), storage_writer=FileSystemWriter(out), no_dist=True)

    return work


def megatron_save(source: Path, out: Path) -> Callable[[], None]:
    """Fuse the weights as Megatron has them and save them with its own checkpointing, in one process."""
    import torch

    if not torch.cuda.is_available():  # questions that a CPU build refuses to answer
        answers: dict[str, Callable[..., object]] = {
            "synchronize": lambda *_: None,
            "current_device": lambda: torch.device("cpu"),
            "empty_cache": lambda: None,
            "is_initialized": lambda: True,
            "stream": lambda *_: contextlib.nullcontext(),
            "Stream": lambda *_, **__: None,
        }
        for name, answer in answers.items():
            setattr(torch.cuda, name, answer)
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing import ShardedTensor

    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)

    def work() -> None:
        config = json.loads((source / "config.json").read_text())
        layers, groups = config["num_hidden_layers"], config["num_key_value_heads"]
        weights = _load(source)
        state: dict[str, ShardedTensor] = {}

        def add(key: str, layer: int | None, tensor: torch.Tensor) -> None:
            where = ((0, layer, layers),) if layer is not None else ()
            state[f"{key}.{layer}"] = ShardedTensor.from_rank_offsets(
                key, tensor, *where, prepend_axis_num=len(where)
            )

        add("embedding.word_embeddings.weight", None, weights.pop("model.embed_tokens.weight"))
        add("decoder.final_layernorm.weight", None, weights.pop("model.norm.weight"))
        if not config["tie_word_embeddings"]:
            add("output_layer.weight", None, weights.pop("lm_head.weight"))
        for layer in range(layers):

            def take(name: str, layer: int = layer) -> torch.Tensor:
                return weights.pop(f"model.layers.{layer}.{name}.weight")

            heads = [take(f"self_attn.{x}_proj") for x in "qkv"]
            width = heads[0].shape[1]
            fused = torch.cat([head.view(groups, -1, width) for head in heads], 1).reshape(-1, width)
            gate_up = torch.cat([take("mlp.gate_proj"), take("mlp.up_proj")])
            under = "decoder.layers."
            add(f"{under}self_attention.linear_qkv.layer_norm_weight", layer, take("input_layernorm"))
            add(f"{under}self_attention.linear_qkv.weight", layer, fused)
            add(f"{under}self_attention.linear_proj.weight", layer, take("self_attn.o_proj"))
            add(f"{under}mlp.linear_fc1.layer_norm_weight", layer, take("post_attention_layernorm"))
            add(f"{under}mlp.linear_fc1.weight", layer, gate_up)
            add(f"{under}mlp.linear_fc2.weight", layer, take("mlp.down_proj"))
        assert not weights, sorted(weights)
        out.mkdir()
        dist_checkpointing.save(state, str(out))
        torch.distributed.destroy_process_group()

    return work


PEERS = {"transformers": transformers_save, "torch DCP": torch_dcp_save, "megatron-core": megatron_save}
PACKAGES = {
    "transformers": ("transformers",),
    "torch DCP": ("torch",),
    "megatron-core": ("torch", "megatron-core"),
}


def _load(source: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: t for file in sorted(source.glob("*.safetensors")) for name, t in load_file(file).items()}


def child(peer: str, source: Path, out: Path) -> None:
    """Run a peer in this process, to an fsync of its files; prints its seconds after the imports."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    work = PEERS[peer](source, out)
    started = time.perf_counter()
    work()
    for path in out.rglob("*"):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    print(f"\nseconds {time.perf_counter() - started}")


def version(peer: str) -> str:
    """The versions of what a peer needs. Raises PackageNotFoundError."""
    from importlib.metadata import version

    return ", ".join(f"{name} {version(name)}" for name in PACKAGES[peer])


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=models.SIZES, default="1.2B")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--only", action="append", choices=PEERS, metavar="PEER", help=", ".join(PEERS))
    parser.add_argument("--work", type=Path, help="where temporary data go; default beside the cwd")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure to FILE")
    options = parser.parse_args()
    rows: list[list[str]] = []
    raw: dict[str, Any] = {}
    with measure.workspace(options.work) as work:
        facts = measure.machine(work)
        source, out = work / "hf", work / "out"
        models.write(source, models.SIZES[options.size])
        commands = {
            "cp -r": measure.copy(source, out),
            "nemoconv hf2nemo2": measure.program("hf2nemo2", source, out, "--no-progress", "-q"),
        }
        skipped = {}
        for peer in options.only or PEERS:
            command = [sys.executable, __file__, "--child", peer, str(source), str(out)]
            try:
                name = f"{peer} ({version(peer)})"
                measure.run(command)  # does it run here; and a warm-up
            except (ImportError, measure.Failed) as error:  # PackageNotFoundError is an ImportError
                skipped[peer] = str(error).strip().splitlines()[-1]
            else:
                commands[name] = command
            measure.remove(out)

        def before() -> None:
            measure.remove(out)
            measure.warm(source)

        used = dict(zip(commands, measure.rounds(options.rounds, before, *commands.values()), strict=True))
    copies = used["cp -r"]
    wall = Summary.of([usage.wall for usage in copies]).median
    cpu = Summary.of([usage.cpu for usage in copies]).median
    for name, usages in used.items():
        walls, cpus = (Summary.of([getattr(u, key) for u in usages]) for key in ("wall", "cpu"))
        after = [float(u.output.rpartition("seconds ")[2]) for u in usages if "seconds " in u.output]
        rows.append(
            [
                name,
                str(walls),
                f"{walls.median / wall:.2f}",
                str(Summary.of(after)) if after else "",
                str(cpus),
                f"{cpus.median / cpu:.2f}",
                f"{max(u.anon_nbytes for u in usages) / MIB:,.0f}",
                f"{max(u.rss_nbytes for u in usages) / MIB:,.0f}",
            ]
        )
        raw[name] = usages
    rows += [[f"{peer}: skipped, {reason}", *[""] * (len(HEAD) - 1)] for peer, reason in skipped.items()]
    return measure.publish(facts, HEAD, rows, (), raw, options.json)


if __name__ == "__main__":
    sys.exit(main())
