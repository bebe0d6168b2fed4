"""``.nemo`` archives of NeMo 1 against ``cp`` of the bytes they become: rank folders as NeMo wrote them
(tp1, and tp2 pp2) to Hugging Face and to NeMo 2, and our own archives there and back."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import conversion
import measure
import models
import numpy
import yaml
from conversion import HEAD, Case, Inputs, Result
from measure import Check

from nemoconv.converters.registry import open_checkpoint
from nemoconv.formats.tar_output import OutputArchive
from nemoconv.formats.torch.checkpoint import StateDictItem
from nemoconv.tensors.checksum import crc32
from nemoconv.tensors.dtypes import BY_NAME

RATIO, ANON_MIB = 1.4, 64.0
CASES = (
    Case("ranks-tp1 to hf", "ranks-tp1pp1", ("nemo2hf",), "hf", targets=True),
    Case("ranks-tp2pp2 to hf", "ranks-tp2pp2", ("nemo2hf",), "hf", targets=True),
    Case("ranks-tp1 to nemo2", "ranks-tp1pp1", ("convert", "--to", "nemo2"), "nemo2", targets=True),
    Case("ranks-tp2pp2 to nemo2", "ranks-tp2pp2", ("convert", "--to", "nemo2"), "nemo2", targets=True),
    Case("hf to .nemo", "hf", ("hf2nemo",), "nemo"),
    Case(".nemo to hf", "nemo", ("nemo2hf",), "hf"),
)


class Archives(Inputs):
    """The inputs of :mod:`conversion`, and archives."""

    def _build(self, name: str, path: Path) -> None:
        kind, _, variant = name.partition("-")
        if kind == "nemo":
            measure.run(measure.program("hf2nemo", self["hf"], path, "-q"))
        elif kind == "ranks":
            write_ranks(path, self["hf"], self._config, int(variant[2]), int(variant[5]))
        else:
            super()._build(name, path)


def write_ranks(path: Path, hf: Path, config: dict[str, object], tp: int, pp: int) -> None:
    """A ``.nemo`` with a state dict for each rank, megatron-core's names, as NeMo 1.20 wrote it."""
    layers = int(str(config["num_hidden_layers"]))
    settings = {
        "mcore_gpt": True,
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": pp,
        "encoder_seq_length": 2048,
        "num_layers": layers,
        "hidden_size": config["hidden_size"],
        "ffn_hidden_size": config["intermediate_size"],
        "num_attention_heads": config["num_attention_heads"],
        "num_query_groups": config["num_key_value_heads"],
        "kv_channels": config["head_dim"],
        "attention_dropout": 0.0,
        "normalization": "rmsnorm",
        "layernorm_epsilon": config["rms_norm_eps"],
        "bias": False,
        "activation": "fast-swiglu",
        "position_embedding_type": "rope",
        "rotary_base": config["rope_theta"],
        "share_embeddings_and_output_weights": config["tie_word_embeddings"],
        "override_vocab_size": config["vocab_size"],
        "target": "nemo.collections.nlp.models.language_modeling.megatron_gpt_model.MegatronGPTModel",
    }
    with open_checkpoint(hf) as source, OutputArchive(path) as output:
        output.write("model_config.yaml", yaml.safe_dump(settings).encode())

        def read(name: str) -> numpy.ndarray:
            return source.read(name).view(numpy.uint16)

        def names(stage: int) -> dict[str, tuple[str, ...]]:
            """Keys of a stage, and the Hugging Face tensors that each is made of."""
            found = (
                {"model.embedding.word_embeddings.weight": ("model.embed_tokens.weight",)}
                if not stage
                else {}
            )
            for local in range(layers // pp):
                a, b = f"model.decoder.layers.{local}.", f"model.layers.{stage * layers // pp + local}."
                attention, mlp = a + "self_attention.", a + "mlp."
                found[attention + "linear_qkv.layer_norm_weight"] = (b + "input_layernorm.weight",)
                qkv = tuple(f"{b}self_attn.{n}_proj.weight" for n in "qkv")
                found[attention + "linear_qkv.weight"] = qkv
                found[attention + "linear_proj.weight"] = (b + "self_attn.o_proj.weight",)
                found[mlp + "linear_fc1.layer_norm_weight"] = (b + "post_attention_layernorm.weight",)
                found[mlp + "linear_fc1.weight"] = (b + "mlp.gate_proj.weight", b + "mlp.up_proj.weight")
                found[mlp + "linear_fc2.weight"] = (b + "mlp.down_proj.weight",)
            if stage == pp - 1:
                found["model.decoder.final_layernorm.weight"] = ("model.norm.weight",)
                if not config["tie_word_embeddings"]:
                    found["model.output_layer.weight"] = ("lm_head.weight",)
                elif pp > 1:
                    found["model.output_layer.weight"] = ("model.embed_tokens.weight",)
            return found

        def piece(key: str, parts: tuple[str, ...], rank: int) -> numpy.ndarray:
            arrays = [read(part) for part in parts]
            if len(arrays) == 3:
                groups, dim = int(str(config["num_key_value_heads"])), int(str(config["head_dim"]))
                grouped = [a.reshape(groups, -1, dim, a.shape[-1]) for a in arrays]
                whole = numpy.concatenate(grouped, axis=1)
                return numpy.split(whole, tp)[rank].reshape(-1, whole.shape[-1])
            if "norm" in key:
                return arrays[0]
            axis = 1 if key.endswith(("linear_proj.weight", "linear_fc2.weight")) else 0
            return numpy.concatenate([numpy.split(a, tp, axis=axis)[rank] for a in arrays])

        dtype = BY_NAME["bfloat16"]
        for stage in range(pp):
            for rank in range(tp):
                held = names(stage)
                shapes = {key: (dtype, piece(key, parts, rank).shape) for key, parts in held.items()}
                item = StateDictItem(shapes)
                folder = "" if tp * pp == 1 else f"tp_rank_{rank:02d}_pp_rank_{stage:03d}/"
                file = output.file(f"{folder}model_weights.ckpt")
                file.size = item.length
                checksums = []
                for (key, parts), offset in zip(held.items(), item.payload_offsets, strict=True):
                    data = numpy.ascontiguousarray(piece(key, parts, rank)).view(numpy.uint8).reshape(-1).data
                    checksums.append(crc32(data))
                    file.pwrite(data, offset)
                for at, frame in item.frames(checksums):
                    file.pwrite(frame, at)
        output.commit()


def checks(results: list[Result]) -> list[Check]:
    """The targets: 1.4 times cp and 64 MiB of anonymous memory, for what NeMo wrote."""
    targeted = {case.name for case in CASES if case.targets}
    found = []
    for result in (result for result in results if result.case in targeted):
        what = f"{result.case} {result.size} {result.cache}"
        found.append(Check(f"{what}: time", result.wall(), RATIO, "x cp"))
        found.append(Check(f"{what}: peak anonymous memory", result.anon(), ANON_MIB, "MiB"))
    return found


def main() -> int:
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", action="append", choices=models.SIZES, help="may be repeated; default 1.2B")
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--cold", action="store_true", help="also with the source out of the page cache")
    parser.add_argument("--only", action="append", choices=names, metavar="CASE", help=", ".join(names))
    parser.add_argument("--work", type=Path, help="where temporary data go; default beside the cwd")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure to FILE")
    options = parser.parse_args()
    results: list[Result] = []
    with measure.workspace(options.work) as work:
        facts = measure.machine(work)
        for size in options.size or [conversion.TARGET_SIZE]:
            inputs = Archives(work, size)
            for cold in (False, True) if options.cold else (False,):
                for case in (case for case in CASES if case.name in (options.only or names)):
                    print(f"{case.name} {size} {'cold' if cold else 'warm'}", file=sys.stderr)
                    out = work / "out"
                    results.append(
                        conversion.measure_case(case, size, inputs, out, options.rounds, cold=cold)
                    )
            measure.remove(work / size)
    rows = [result.row() for result in results]
    return measure.publish(facts, HEAD, rows, checks(results), results, options.json)


if __name__ == "__main__":
    sys.exit(main())
