"""Ranks for tests of live resharding: ``python live_ranks.py`` forks a world for each line of JSON.

The shards that ranks give and expect come from checkpoints on disk, cut by the caller; where a rank's
layers and experts lie is worked out here, by hand, for any layout of the tests. Ranks are CPUs joined by
gloo, or, when a job says so, a GPU each joined by NCCL.
"""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import sys
import tempfile
import time
import traceback
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import torch
import torch.distributed as dist

from nemoconv.live import Layout, LiveReshard, placements, plan_reshard, reshard_state_dict
from nemoconv.live.plan import model_config

TIMEOUT = 60
Tensors = dict[str, torch.Tensor]


def as_tensor(name: str, bits: numpy.ndarray, mixed: bool) -> torch.Tensor:
    """The bits as bfloat16; with ``mixed``, norms as float32 and projections as eight-bit floats."""
    if mixed and "norm" in name:
        return torch.from_numpy(bits.astype("u4") * 65537).view(torch.float32)
    if mixed and ("linear_fc2" in name or "down_proj" in name):
        return torch.from_numpy(bits.astype("u1")).view(torch.float8_e4m3fn)
    return torch.from_numpy(bits.copy()).view(torch.bfloat16)


def run_of(layer: int, job: dict[str, Any], sizes: dict[str, Any]) -> tuple[int, int]:
    """(which run of layers in model order, number in it) of a layer."""
    counts = sizes.get("stages")
    if counts is None:
        runs = sizes.get("pp", 1) * sizes.get("vpp", 1)
        counts = [job["layers"] // runs] * runs
    for run, count in enumerate(counts):
        if layer < count:
            return run, layer
        layer -= count
    raise AssertionError


def shard(job: dict[str, Any], side: str, rank: int) -> list[Tensors] | None:
    """What a rank holds in the layout of ``side``, by model chunk; None if it takes no part."""
    sizes, ranks = job[side], job[f"{side}_ranks"]
    tp, pp, ep, vpp = (sizes.get(key, 1) for key in ("tp", "pp", "ep", "vpp"))
    etp = sizes.get("etp", tp)
    device = "cuda" if job.get("gpus") else "cpu"
    if rank not in ranks:
        return None
    at = ranks.index(rank)
    stage, within = divmod(at, len(ranks) // pp)
    data = Path(job["data"])
    if job.get(f"{side}_names") == "hf":
        arrays = numpy.load(data / f"hf-{tp}-{within % tp}.npz")
        share, mine = max(1, job["experts"] // ep), within // tp % ep
        names = [
            name
            for name in arrays.files
            if not (found := re.search(r"\.experts\.(\d+)\.", name)) or int(found[1]) // share == mine
        ]
        return [{name: as_tensor(name, arrays[name], job["mixed"]).to(device) for name in names}]
    dense = numpy.load(data / f"nemo-{tp}-{within % tp}.npz")
    routed = numpy.load(data / f"nemo-{etp}-{within % etp}.npz")
    mine = within // etp % ep
    held: list[Tensors] = [{} for _ in range(vpp)]
    for name in dense.files:
        layer = re.search(r"\.layers\.(\d+)\.", name)
        expert = re.search(r"\.local_experts\.(\d+)\.", name)
        if layer:
            run, number = run_of(int(layer[1]), job, sizes)
        else:
            run, number = (0 if "embedding" in name else pp * vpp - 1), 0
        local = re.sub(r"\.layers\.\d+\.", f".layers.{number}.", name)
        if expert:
            share = job["experts"] // ep
            if int(expert[1]) // share != mine:
                continue
            local = re.sub(r"local_experts\.\d+", f"local_experts.{int(expert[1]) % share}", local)
        bits = (routed if expert else dense)[name]
        places = [(run, local)]
        if job["tied"] and "embedding" in name and pp * vpp > 1 and side == "target":
            places.append((pp * vpp - 1, "output_layer.weight"))
        for which, called in places:
            if which % pp == stage:
                held[which // pp][called] = as_tensor(name, bits, job["mixed"]).to(device)
    return held


def layout(sizes: dict[str, Any]) -> Layout:
    return Layout(
        sizes.get("tp", 1),
        sizes.get("pp", 1),
        sizes.get("ep", 1),
        sizes.get("vpp", 1),
        sizes.get("etp"),
        stages=tuple(sizes["stages"]) if "stages" in sizes else None,
    )


def differences(got: list[Tensors], wanted: list[Tensors] | None) -> list[str]:
    """Names of tensors that are missing, or whose bits, shapes or types differ."""
    found = []
    wanted = wanted or [{} for _ in got]
    if len(got) != len(wanted):
        return [f"{len(got)} chunks for {len(wanted)}"]
    for chunk, (a, b) in enumerate(zip(got, wanted, strict=True)):
        for name in sorted(a.keys() | b.keys()):
            if name not in a or name not in b:
                found.append(f"{chunk} {name} only {'got' if name in a else 'wanted'}")
            elif a[name].dtype != b[name].dtype or a[name].shape != b[name].shape:
                found.append(f"{chunk} {name}: {a[name].dtype} {list(a[name].shape)}")
            elif not torch.equal(a[name].contiguous().view(torch.uint8), b[name].view(torch.uint8)):
                found.append(f"{chunk} {name} has other bits")
    return found


def common(job: dict[str, Any]) -> dict[str, Any]:
    keys = ("source_ranks", "target_ranks", "source_names", "target_names")
    return {key: job[key] for key in keys if job.get(key)}


def chunked(state: list[Tensors] | None, job: dict[str, Any], side: str) -> Any:
    return state if state is None or job[side].get("vpp", 1) > 1 else state[0]


def once(job: dict[str, Any], rank: int) -> dict[str, Any]:
    """One call of the function; what a rank got against what it should hold."""
    state = chunked(shard(job, "source", rank), job, "source")
    got = reshard_state_dict(
        state,
        source=layout(job["source"]),
        target=layout(job["target"]),
        config=job["config"],
        **common(job),
        **job.get("options", {}),
    )
    got = got if isinstance(got, list) else [got]
    return {"different": differences(got, shard(job, "target", rank)), "tensors": sum(map(len, got))}


def in_new_thread(what: Callable[..., None], *args: Any) -> None:
    """Run it where nothing has made the rank's device current yet. What it raises is raised here."""
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
    with ThreadPoolExecutor(1) as threads:
        if device is not None:
            threads.submit(torch.cuda.set_device, device).result()
        threads.submit(what, *args).result()


def unsharable(job: dict[str, Any], rank: int) -> dict[str, Any]:
    """One rank's memory cannot be read by others; the same tensors then go as messages."""
    if rank == job["culprit"]:
        torch.cuda.memory._set_allocator_settings("expandable_segments:True")
    state = chunked(shard(job, "source", rank), job, "source")
    out = chunked(shard(job, "target", rank), job, "target")
    sides = {key: layout(job[key]) for key in ("source", "target")}
    error = ""
    try:
        reshard_state_dict(state, **sides, config=job["config"], out=out, transport="peer")
    except ValueError as raised:
        error = f"{type(raised).__name__}: {raised}"
    for tensor in out.values():
        tensor.view(torch.uint8).fill_(0x7F)
    reshard_state_dict(state, **sides, config=job["config"], out=out)
    return {"error": error, "different": differences([out], shard(job, "target", rank))}


def transports(job: dict[str, Any], rank: int) -> dict[str, Any]:
    """One job by every transport, twice, into tensors full of other bits, and once into new tensors."""
    found: list[str] = []
    wanted = shard(job, "target", rank)

    def run(out: list[Tensors], transport: str) -> None:
        reshard_state_dict(
            chunked(shard(job, "source", rank), job, "source"),
            source=layout(job["source"]),
            target=layout(job["target"]),
            config=job["config"],
            out=chunked(out, job, "target") if out else None,
            transport=transport,
            bucket_nbytes=64 << 10,
            **common(job),
        )

    for transport in job["transports"]:
        out = [{name: torch.empty_like(t) for name, t in chunk.items()} for chunk in wanted or []]
        for fill in (0x7F, 0x55):
            for tensor in (t for chunk in out for t in chunk.values()):
                tensor.view(torch.uint8).fill_(fill)
            in_new_thread(run, out, transport)
            found += [f"{transport}: {what}" for what in differences(out or [{}], wanted)]
    answer = once(job, rank)
    return {"different": found + answer["different"], "tensors": answer["tensors"]}


def steps(job: dict[str, Any], rank: int) -> dict[str, Any]:
    """A kept plan: several steps, new data in each, into given tensors under a wrapped model's names; then
    with sources released, and as a stream."""
    sides = placements(layout(job["source"]), layout(job["target"]), dist.get_world_size(), **common(job))
    table, config = model_config(None, job["config"])
    plan = plan_reshard(table, config, *sides, world_size=dist.get_world_size())
    options = {key: value for key, value in job["options"].items() if key != "release_source"}
    runner = LiveReshard(plan, **options)
    found: list[str] = []
    wanted = shard(job, "target", rank)
    out = [{f"module.{name}": torch.empty_like(t) for name, t in chunk.items()} for chunk in wanted or []]
    for number in range(3):
        job["data"] = job["steps"][number % 2]
        state = shard(job, "source", rank)
        for chunk in out:
            for tensor in chunk.values():
                tensor.view(torch.uint8).fill_(0x7F)
        filled = chunked(out, job, "target") if out else None
        got = runner.run(chunked(state, job, "source"), out=filled)
        expected = shard(job, "target", rank)
        found += differences(got if isinstance(got, list) else [got], expected)
        plain = [{name.removeprefix("module."): t for name, t in chunk.items()} for chunk in out]
        found += differences(plain or [{}], expected)
    state = shard(job, "source", rank)
    before = [weakref.ref(t) for chunk in state or [] for t in chunk.values()]
    held = sum(t.nbytes for chunk in state or [] for t in chunk.values())
    got = runner.run(chunked(state, job, "source"), release_source=True)
    found += differences(got if isinstance(got, list) else [got], shard(job, "target", rank))
    if any(chunk for chunk in state or []):
        found.append("state_dict is not empty after release")
    gc.collect()
    given = {t.data_ptr() for chunk in (got if isinstance(got, list) else [got]) for t in chunk.values()}
    alive = [t for ref in before if (t := ref()) is not None and t.data_ptr() not in given]
    if alive:
        found.append(f"{len(alive)} released tensors are alive")
    streamed = [{} for _ in range(job["target"].get("vpp", 1))]
    for chunk, name, tensor in runner.stream(chunked(shard(job, "source", rank), job, "source")):
        streamed[chunk][name] = tensor
    found += differences(streamed, shard(job, "target", rank))
    report = runner.report
    return {"different": found, "source_nbytes": held, "peak": report.peak_nbytes, "rounds": report.rounds}


def released(job: dict[str, Any], rank: int) -> dict[str, Any]:
    """The report of one run that releases its sources."""
    sides = placements(layout(job["source"]), layout(job["target"]), dist.get_world_size(), **common(job))
    table, config = model_config(None, job["config"])
    plan = plan_reshard(table, config, *sides, world_size=dist.get_world_size())
    runner = LiveReshard(plan, **job["options"])
    state = shard(job, "source", rank)
    given = [t.nbytes for chunk in state or [] for t in chunk.values()]
    got = runner.run(chunked(state, job, "source"), release_source=True)
    got = got if isinstance(got, list) else [got]
    taken = [t.nbytes for chunk in got for t in chunk.values()]
    return {
        "different": differences(got, shard(job, "target", rank)),
        "sizes": [sum(given), sum(taken)],
        "largest": max(given + taken),
        "peak": runner.report.peak_nbytes,
        "rounds": runner.report.rounds,
    }


def failing(job: dict[str, Any], rank: int) -> dict[str, Any]:
    """What each rank raises when one of them is not as the plan says; then the same runner, in order."""
    wrong, culprit = job["wrong"], job["culprit"]
    sides = placements(layout(job["source"]), layout(job["target"]), dist.get_world_size(), **common(job))
    table, config = model_config(None, job["config"])
    world_size = dist.get_world_size() + (wrong == "world")
    if rank == culprit and wrong == "plan":
        sides = sides[0], placements(Layout(), Layout(), world_size)[1]
    plan = plan_reshard(table, config, *sides, world_size=world_size)
    runner = LiveReshard(plan, bucket_nbytes=64 << 10)
    state = chunked(shard(job, "source", rank), job, "source")
    out = chunked(shard(job, "target", rank), job, "target")
    name = next(iter(state))
    good = state[name]
    given, into = dict(state), None
    if wrong == "out":
        into = dict(out)
    if rank == culprit:
        if wrong == "missing":
            del given[name]
        elif wrong == "shape":
            given[name] = good[:-1].clone()
        elif wrong == "dtype":
            given[name] = good.view(torch.float16)
        elif wrong == "extra":
            given["decoder.layers.0.mlp.no_such.weight"] = good
        elif wrong == "type":
            given[name] = "text"
        elif wrong == "none":
            given = None
        elif wrong == "out":
            into.pop(next(iter(into)))
    message = ""
    try:
        runner.run(given, out=into)
    except ValueError as error:
        message = f"{type(error).__name__}: {error}"
    if wrong in ("plan", "world"):
        return {"error": message, "different": []}
    got = runner.run(state)
    return {"error": message, "different": differences([got], shard(job, "target", rank))}


def failing_arguments(job: dict[str, Any], rank: int) -> dict[str, Any]:
    """One rank's arguments cannot be planned; the others' can."""
    target = Layout(3) if rank == job["culprit"] else layout(job["target"])
    try:
        reshard_state_dict(
            chunked(shard(job, "source", rank), job, "source"),
            source=layout(job["source"]),
            target=target,
            config=job["config"],
        )
    except ValueError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"error": ""}


JOBS = {
    "once": once,
    "transports": transports,
    "unsharable": unsharable,
    "steps": steps,
    "released": released,
    "failing": failing,
    "failing_arguments": failing_arguments,
}


def play(job: dict[str, Any], rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    try:
        place = {"init_method": f"file://{folder}/store", "rank": rank, "world_size": job["world"]}
        if job.get("gpus"):
            torch.cuda.set_device(rank)
            dist.init_process_group("nccl", device_id=torch.device("cuda", rank), **place)
        else:
            dist.init_process_group("gloo", **place)
        answer = JOBS[job["do"]](job, rank)
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        answer = {"failed": traceback.format_exc()}
    Path(folder, f"{rank}.tmp").write_text(json.dumps(answer))
    os.rename(f"{folder}/{rank}.tmp", f"{folder}/{rank}.json")


def run(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Fork a world, wait for its answers; ranks that hang are killed and say so."""
    with tempfile.TemporaryDirectory() as folder:
        children = []
        for rank in range(job["world"]):
            child = os.fork()
            if not child:
                play(job, rank, folder)
                os._exit(0)
            children.append(child)
        end = time.monotonic() + TIMEOUT
        answers: dict[int, dict[str, Any]] = {}
        while len(answers) < len(children) and time.monotonic() < end:
            for rank in range(len(children)):
                path = Path(folder, f"{rank}.json")
                if rank not in answers and path.exists():
                    answers[rank] = json.loads(path.read_text())
            if any("failed" in answer for answer in answers.values()):
                time.sleep(0.5)  # the others may still say why
                end = min(end, time.monotonic() + 1)
            time.sleep(0.005)
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        return [answers.get(rank, {"failed": "did not answer"}) for rank in range(len(children))]


if __name__ == "__main__":
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), file=answers, flush=True)
