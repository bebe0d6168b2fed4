"""Change the layout of a model in GPU memory: seconds, extra memory, and the limits of the machine.

    torchrun --nproc-per-node 2 benchmarks/live.py [--layers 16] [--only peer] [--peer] [--json FILE]

TP2 -> PP2 and back of Llama-3-8B's shape in bf16, on two GPUs of one host. ``--only`` runs one transport,
whose first call is then the first of its kind in the processes. ``--peer`` also runs megatron-core's own
resharding (megatron.core.resharding, 0.19) in the same processes, on the same shapes. Times are medians of
``--steps`` steps, with all ranks waiting for one another before and after.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")

try:
    import torch
    import torch.distributed as dist
except ImportError:
    sys.exit("skipped: torch is not installed")

from nemoconv.live import Layout, LiveReshard, placements, plan_reshard  # noqa: E402
from nemoconv.mappings import load_table  # noqa: E402
from nemoconv.mappings.hf.fields import read_config  # noqa: E402

MIB = 1 << 20
SHAPE = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
State = dict[str, torch.Tensor]
#: of the 16 layers, by one transport
TARGETS = {
    "TP2 -> PP2 ms": 9.5,
    "PP2 -> TP2 ms": 9.5,
    "extra MiB": 512,
    "extra MiB back": 512,
    "first call ms": 100,
}


def timed(what: Callable[[], Any], count: int) -> list[float]:
    """Seconds of each call, from when all ranks are ready to when all are done."""
    found = []
    for _ in range(count):
        dist.barrier()
        torch.cuda.synchronize()
        started = time.perf_counter()
        what()
        torch.cuda.synchronize()
        dist.barrier()
        found.append(time.perf_counter() - started)
    return found


def extra_memory(what: Callable[[], Any]) -> float:
    """MiB that a call takes beyond what is there before and after."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    what()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / MIB


def limits(count: int) -> dict[str, float]:
    """GB/s of the link in both directions at once, of an all-to-all, and of a copy on one device."""
    other = 1 - dist.get_rank()
    a = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)

    def exchange() -> None:
        ops = [dist.P2POp(dist.isend, a, other), dist.P2POp(dist.irecv, b, other)]
        for work in dist.batch_isend_irecv(ops):
            work.wait()

    found = {}
    for name, what, nbytes in (
        ("p2p GB/s each way", exchange, a.nbytes),
        ("all_to_all GB/s sent", lambda: dist.all_to_all_single(b, a), a.nbytes / 2),
        ("device copy GB/s read+written", lambda: b.copy_(a), 2 * a.nbytes),
    ):
        what()
        found[name] = nbytes / statistics.median(timed(what, count)) / 1e9
    return found


def settings(layers: int) -> tuple[Any, dict[str, Any]]:
    table = load_table("llama")
    return table, read_config(table.fields, {**SHAPE, "num_hidden_layers": layers})[0]


def runner(layers: int, source: Layout, target: Layout, **options: Any) -> LiveReshard:
    table, config = settings(layers)
    plan = plan_reshard(table, config, *placements(source, target, 2), world_size=2)
    return LiveReshard(plan, **options)


def random_state(resharder: LiveReshard) -> State:
    """Random bits; what both ranks hold, the same on both."""
    found = {}
    for number, local in enumerate(resharder.plan.locals(dist.get_rank(), "source").values()):
        shared = len(local.shape) == 1
        torch.manual_seed(number if shared else number + 1000 * (1 + dist.get_rank()))
        bits = torch.randint(-(1 << 15), 1 << 15, local.shape, dtype=torch.int16, device="cuda")
        found[local.name] = bits.view(torch.bfloat16)
    return found


def same_bits(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[n].view(torch.int16), b[n].view(torch.int16)) for n in a
    )


def ours(layers: int, steps: int, **options: Any) -> dict[str, Any]:
    """There and back into tensors that are there already, as a training loop has them."""
    there = runner(layers, Layout(2), Layout(1, 2), **options)
    back = runner(layers, Layout(1, 2), Layout(2), **options)
    state = random_state(there)
    found: dict[str, Any] = {}
    held: State = {
        local.name: torch.full(local.shape, float("nan"), dtype=torch.bfloat16, device="cuda")
        for local in there.plan.locals(dist.get_rank(), "target").values()
    }

    def first() -> None:
        runner(layers, Layout(2), Layout(1, 2), **options).run(state, out=held)

    found["first call ms"] = timed(first, 1)[0] * 1e3
    there.run(state, out=held)
    again = {name: torch.empty_like(t) for name, t in state.items()}
    back.run(held, out=again)
    found["bit-equal"] = same_bits(again, state)
    del again
    there.clear()
    back.clear()
    found["extra MiB"] = extra_memory(lambda: there.run(state, out=held))
    found["extra MiB back"] = extra_memory(lambda: back.run(held, out=state))
    for name, call in (
        ("TP2 -> PP2 ms", lambda: there.run(state, out=held)),
        ("PP2 -> TP2 ms", lambda: back.run(held, out=state)),
    ):
        times = timed(call, steps)
        found[name] = statistics.median(times) * 1e3
        found[name + " (least)"] = min(times) * 1e3
    report = there.report
    found["sent GB"], found["local GB"] = report.sent_nbytes / 1e9, report.copied_nbytes / 1e9
    found["rounds"] = report.rounds

    def cpu() -> None:
        there.run(state, out=held)

    torch.cuda.synchronize()
    dist.barrier()
    started = time.perf_counter()
    cpu()
    found["CPU ms until all is asked for"] = (time.perf_counter() - started) * 1e3
    torch.cuda.synchronize()
    there.clear()
    back.clear()
    return found


def released(layers: int, count: int, **options: Any) -> dict[str, Any]:
    """There and back while sources are given up: median time, and the most that the worst rank needs."""
    there = runner(layers, Layout(2), Layout(1, 2), **options)
    back = runner(layers, Layout(1, 2), Layout(2), **options)
    held = random_state(there)
    expected = {name: t.clone() for name, t in held.items()}

    def step(resharder: LiveReshard) -> None:
        nonlocal held
        held = resharder.run(held, release_source=True)

    times: list[float] = []
    most = torch.zeros(1, device="cuda")
    for number in range(2 * count + 2):
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        times += timed(lambda: step(there), 1) if number % 2 == 0 else timed(lambda: step(back), 1)
        larger = max(before, torch.cuda.memory_allocated())
        most = most.maximum(torch.tensor([torch.cuda.max_memory_allocated() - larger], device="cuda"))
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return {
        "TP2 -> PP2 ms": statistics.median(times[2::2]) * 1e3,
        "PP2 -> TP2 ms": statistics.median(times[3::2]) * 1e3,
        "bit-equal": same_bits(held, expected),
        "peak over the larger side MiB": most.item() / MIB,
    }


def judged(found: dict[str, Any]) -> bool:
    """Print PASS or FAIL for each target of each transport; whether one of them meets all."""
    passed = False
    for name, row in found.items():
        if isinstance(row, dict) and name.startswith("nemoconv"):
            missed = [f"{key} {row[key]:.1f} > {most}" for key, most in TARGETS.items() if row[key] > most]
            print(f"{'FAIL' if missed else 'PASS'} {name}", *missed, sep="  ")
            passed |= not missed
    return passed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--only", choices=("p2p", "all_to_all", "peer"), help="the one transport to run")
    parser.add_argument("--peer", action="store_true", help="also run megatron-core's resharding")
    parser.add_argument("--variants", action="store_true", help="try transports and bucket sizes")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if torch.cuda.device_count() < 2 or int(os.environ.get("WORLD_SIZE", 1)) != 2:
        sys.exit("skipped: needs 2 CUDA devices and torchrun --nproc-per-node 2")
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl", device_id=torch.device("cuda", torch.cuda.current_device()))
    dist.barrier()
    found: dict[str, Any] = {
        "GPU": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "NCCL": ".".join(map(str, torch.cuda.nccl.version())),
        "layers": arguments.layers,
    }
    options: list[dict[str, Any]] = [{}, {"transport": "peer"}]
    if arguments.only:
        options = [{"transport": arguments.only}]
    else:
        found |= limits(7)
        torch.cuda.empty_cache()
    if arguments.variants:
        options += [{"bucket_nbytes": n * MIB} for n in (32, 64, 128)]
        options += [{"transport": "all_to_all", "bucket_nbytes": n * MIB} for n in (64, 256)]
    for chosen in options:
        name = "nemoconv" + "".join(f" {key}={value}" for key, value in chosen.items())
        found[name] = ours(arguments.layers, arguments.steps, **chosen)
        torch.cuda.empty_cache()
    if arguments.only in (None, "p2p"):
        found["with sources released"] = released(arguments.layers, arguments.steps)
        torch.cuda.empty_cache()
    if arguments.peer:
        from live_peer import megatron_core

        found["megatron-core"] = megatron_core(arguments.layers, arguments.steps, timed, extra_memory)
    if dist.get_rank() == 0:
        for key, value in found.items():
            if isinstance(value, dict):
                print(f"{key}:")
                for name, figure in value.items():
                    print(f"    {name:42} {figure if isinstance(figure, (bool, int)) else round(figure, 2)}")
            else:
                print(f"{key:46} {value if not isinstance(value, float) else round(value, 1)}")
        if arguments.json:
            arguments.json.write_text(json.dumps(found, indent=1))
    missed = dist.get_rank() == 0 and arguments.layers == 16 and not judged(found)
    dist.destroy_process_group()
    sys.exit(missed)


if __name__ == "__main__":
    main()
