"""ONNX export: against ``cp -r`` of the weights it writes, in place, and beside two other exporters.

Peers: ``torch.onnx.export`` (dynamo, with a cache of past keys and values) and the model builder of
onnxruntime-genai (float32, CPU). A peer that is not installed, or that fails, is skipped with its reason.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import models
from measure import MIB, Check, Summary, Usage

TARGET_SIZE, PEER_SIZE = "1.2B", "0.3B"
WALL_RATIO, IN_PLACE_SECONDS, ANON_MIB, PEER_RATIO = 1.25, 1.0, 100.0, 0.2
HEAD = ("case", "size", "GB written", "s", "against", "s", "ratio", "CPU s", "anon MiB", "RSS MiB")


@dataclass(frozen=True, slots=True)
class Result:
    """All rounds of one case and of what it is compared with. ``nbytes`` counts what is written."""

    case: str
    size: str
    nbytes: int
    against: str
    others: list[Usage]
    ours: list[Usage]

    def wall(self) -> float:
        return median(self.ours, "wall")

    def ratio(self) -> float:
        return self.wall() / median(self.others, "wall")

    def anon(self) -> float:
        """Peak over all rounds, in MiB."""
        return max(usage.anon_nbytes for usage in self.ours) / MIB

    def rss(self) -> float:
        return max(usage.rss_nbytes for usage in self.ours) / MIB

    def row(self) -> list[str]:
        return [
            self.case,
            self.size,
            f"{self.nbytes / 1e9:.2f}",
            str(Summary.of([usage.wall for usage in self.ours])),
            self.against,
            str(Summary.of([usage.wall for usage in self.others])),
            f"{self.ratio():.3g}",
            str(Summary.of([usage.cpu for usage in self.ours])),
            f"{self.anon():.0f}",
            f"{self.rss():.0f}",
        ]


def median(usages: Sequence[Usage], name: str) -> float:
    return Summary.of([getattr(usage, name) for usage in usages]).median


def build(folder: Path, size: str) -> Path:
    """A random Llama in bfloat16, with a tokenizer of one word, which exporters insist on."""
    if not folder.exists():
        print(f"building {folder}", file=sys.stderr)
        config = {
            **models.SIZES[size],
            "max_position_embeddings": 131072,
            "bos_token_id": 0,
            "eos_token_id": 1,
        }
        models.write(folder, config)
        word = {"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"}
        parts = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
        tokenizer = {"version": "1.0", **dict.fromkeys(parts), "added_tokens": [], "model": word}
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def ours(size: str, source: Path, out: Path, count: int) -> list[Result]:
    """Exports with a copy of the weights against ``cp``; and the graph alone, in place."""

    def before() -> None:
        measure.remove(out)
        measure.warm(source)

    results = []
    for name, options in (("hf2onnx", ()), ("hf2onnx --pack", ("--pack",))):
        print(f"{name} {size}", file=sys.stderr)
        command = measure.program("hf2onnx", source, out, *options, "--no-progress", "-q")
        before()
        measure.run([*command, "--verify"])  # is it right; and a warm-up
        written = measure.nbytes(out)
        copies, used = measure.rounds(count, before, measure.copy(source, out), command)
        results.append(Result(name, size, written, "cp -r", copies, used))
    print(f"hf2onnx --in-place {size}", file=sys.stderr)
    command = measure.program("hf2onnx", source, "--in-place", "--overwrite", "-q")
    measure.run(command)
    written = sum((source / name).stat().st_size for name in ("model.onnx", "genai_config.json"))
    copies, used = measure.rounds(count, before, measure.copy(source, out), command)
    results.append(Result("hf2onnx --in-place", size, written, "cp -r", copies, used))
    return results


def torch_export(source: Path, out: Path) -> None:
    """The model with its cache as inputs and outputs, through torch.export."""
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    loaded = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager")
    config = loaded.config
    layers = range(config.num_hidden_layers)

    class WithCache(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = loaded

        def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any, past: Any) -> Any:
            found = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=DynamicCache(past),
                use_cache=True,
            )
            return found.logits, [(layer.keys, layer.values) for layer in found.past_key_values.layers]

    shape = (2, config.num_key_value_heads, 5, config.head_dim)
    past = [(torch.zeros(shape), torch.zeros(shape)) for _ in layers]
    row = {0: "batch_size", 1: "sequence_length"}
    whole = {0: "batch_size", 1: "total_sequence_length"}
    cached = {0: "batch_size", 2: "past_sequence_length"}
    out.mkdir()
    torch.onnx.export(
        WithCache().eval(),
        (torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 8, dtype=torch.int64),
         torch.ones(2, 3, dtype=torch.int64), past),
        str(out / "model.onnx"),
        dynamo=True,
        external_data=True,
        dynamic_shapes=(row, whole, row, [(cached, cached)] * len(layers)),
    )  # fmt: skip


def genai_build(source: Path, out: Path) -> None:
    """onnxruntime-genai's own builder, as its documentation calls it."""
    arguments = ["-i", source, "-o", out, "-p", "fp32", "-e", "cpu", "-c", out.parent / "cache"]
    sys.argv = ["builder", *map(str, arguments)]
    runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")


PEERS = {"torch.onnx.export": torch_export, "genai builder": genai_build}


def child(peer: str, source: Path, out: Path) -> None:
    """Run a peer in this process, to an fsync of its files."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    PEERS[peer](source, out)
    for path in out.rglob("*"):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def peers(size: str, source: Path, out: Path, count: int, wanted: Sequence[str]) -> tuple[list[Result], list]:
    """nemoconv's packed float32 export, the nearest to what peers write, against each of them."""
    command = measure.program("hf2onnx", source, out, "--pack", "--dtype", "float32", "--no-progress", "-q")

    def before() -> None:
        measure.remove(out)
        measure.warm(source)

    results, skipped = [], []
    for peer in wanted:
        print(f"{peer} {size}", file=sys.stderr)
        other = [sys.executable, __file__, "--child", peer, str(source), str(out)]
        try:
            before()
            measure.run(other)  # does it run here; and a warm-up
        except measure.Failed as error:
            skipped.append(
                [f"{peer}: skipped, {str(error).strip().splitlines()[-1]}", *[""] * (len(HEAD) - 1)]
            )
            continue
        written = measure.nbytes(out)
        before()
        theirs, used = measure.rounds(count, before, other, command)
        results.append(Result("hf2onnx --pack --dtype float32", size, written, peer, theirs, used))
        results.append(Result(peer, size, written, peer, theirs, theirs))
    return results, skipped


def checks(results: Sequence[Result]) -> list[Check]:
    found = []
    for result in results:
        what = f"{result.case} {result.size}"
        if result.against == "cp -r":
            found.append(Check(f"{what}: peak anonymous memory", result.anon(), ANON_MIB, "MiB"))
            if "--in-place" in result.case:
                found.append(Check(f"{what}: time", result.wall(), IN_PLACE_SECONDS, "s"))
            else:
                found.append(Check(f"{what}: time", result.ratio(), WALL_RATIO, "x cp"))
        elif result.case not in PEERS:
            theirs = max(usage.anon_nbytes for usage in result.others) / MIB
            against = f"{what} against {result.against}"
            found.append(Check(f"{against}: time", result.ratio(), PEER_RATIO, "x"))
            found.append(Check(f"{against}: peak anonymous memory", result.anon() / theirs, PEER_RATIO, "x"))
    return found


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=models.SIZES, default=TARGET_SIZE)
    parser.add_argument("--peer-size", choices=models.SIZES, default=PEER_SIZE)
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--peer-rounds", type=int, default=1, help="default 1: peers take minutes")
    parser.add_argument("--peer", action="append", choices=PEERS, help="default: all")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--work", type=Path, help="where temporary data go; default beside the cwd")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure to FILE")
    options = parser.parse_args()
    with measure.workspace(options.work) as work:
        facts = measure.machine(work)
        results = ours(options.size, build(work / options.size, options.size), work / "out", options.rounds)
        skipped: list[list[str]] = []
        if not options.no_peers:
            source = build(work / options.peer_size, options.peer_size)
            more, skipped = peers(
                options.peer_size, source, work / "out", options.peer_rounds, options.peer or list(PEERS)
            )
            results += more
    rows = [result.row() for result in results] + skipped
    return measure.publish(facts, HEAD, rows, checks(results), results, options.json)


if __name__ == "__main__":
    sys.exit(main())
