"""Runs in an environment that has NeMo 2.4.1: restores an archive with NeMo's own code, prints one JSON line.

python child.py ARCHIVE CLASS HF_DIR HF_CLASS TOKENS     CLASS is the whole name of NeMo's class

NeMo 2.4.1 was released against megatron-core 0.13, which no longer takes the simulated ranks that NeMo's tools
for one process use; with 0.12 some signatures differ. Its BERT embedding model imports a name that its own
bert_spec has lost, and its own layers call ``get`` on a dataclass. That is mended here, and nothing else.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import tarfile
import tempfile
import types
from pathlib import Path
from typing import Any

os.environ |= {"TORCHDYNAMO_DISABLE": "1", "NVIDIA_PYTORCH_VERSION": "21.10", "OMP_NUM_THREADS": "1"}
sys.path[:0] = [str(Path(__file__).parents[1] / "real_nemo"), str(Path(__file__).parent)]

import stand_ins  # noqa: E402

stand_ins.install()

import arithmetic  # noqa: E402

arithmetic.install()

import torch  # noqa: E402

_CORE = "nemo.collections.nlp.models.language_modeling.megatron."


def mend() -> None:
    """See above; and CUDA's random states, buffers and masks, of which a CPU needs none."""
    optimizer: Any = types.ModuleType(
        "nemo.core.optim.distributed_adam"
    )  # of apex's kernels, and never built
    optimizer.MegatronDistributedFusedAdam = type("MegatronDistributedFusedAdam", (torch.optim.AdamW,), {})
    sys.modules[optimizer.__name__] = optimizer
    torch.cuda.current_device = lambda: "cpu"
    from megatron.core.model_parallel_config import ModelParallelConfig
    from megatron.core.tensor_parallel import random
    from megatron.core.transformer import transformer_block
    from megatron.core.utils import GlobalMemoryBuffer

    ModelParallelConfig.get = lambda self, name, default=None: getattr(self, name, default)
    count = transformer_block.get_num_layers_to_build
    transformer_block.get_num_layers_to_build = lambda config, vp_stage=None: count(config)
    random.CudaRNGStatesTracker.fork = lambda self, *_args, **_named: contextlib.nullcontext()
    GlobalMemoryBuffer.get_tensor = lambda self, shape, dtype, *_args: torch.empty(shape, dtype=dtype)

    spec = importlib.import_module(_CORE + "bert.bert_spec")
    name = "bert_layer_with_transformer_engine_spec_postln"
    if not hasattr(spec, name):
        setattr(spec, name, spec.get_bert_layer_with_transformer_engine_spec_postln())
    layer = importlib.import_module(_CORE + "falcon.falcon_decoder_layer").FalconTransformerLayer
    forward = layer.forward
    layer.forward = lambda self, *args, inference_context=None, **named: forward(self, *args, **named)

    def norm(config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> Any:
        return torch.nn.LayerNorm(hidden_size, eps=eps)

    importlib.import_module(_CORE + "bert.bert_model").FusedLayerNorm = norm
    importlib.import_module("megatron.core.models.bert.bert_lm_head").LNImpl = norm
    ones = torch.ones
    torch.ones = lambda *size, device=None, **named: ones(*size, **named)  # asks for "cuda"


def restore(archive: Path, kind: Any) -> tuple[list[int], Any, bool]:
    """(entries of the state dict of each rank, the last rank's model, whether it was a distributed
    checkpoint, which is restored as one rank)."""
    from lightning.pytorch import Trainer
    from nemo.collections.nlp.parts.nlp_overrides import (
        NEMO_MEGATRON_MODEL_PARALLEL_APPSTATE_OVERRIDE,
        NLPDDPStrategy,
        NLPSaveRestoreConnector,
    )
    from nemo.utils.app_state import AppState
    from omegaconf import open_dict

    with tarfile.open(archive) as opened:
        whole = any(name.endswith("model_weights/metadata.json") for name in opened.getnames())

    def call(**named: Any) -> Any:
        trainer = Trainer(
            devices=1, strategy=NLPDDPStrategy(), accelerator="cpu", precision=32, logger=False,
            enable_checkpointing=False,
        )  # fmt: skip
        connector = NLPSaveRestoreConnector()
        return kind.restore_from(
            str(archive), trainer=trainer, map_location="cpu", save_restore_connector=connector, **named
        )

    config = call(return_config=True)
    tp, pp = config.tensor_model_parallel_size, config.pipeline_model_parallel_size
    with open_dict(config):
        config.use_cpu_initialization, config.dist_ckpt_load_on_device, config.precision = True, False, 32
        if whole:
            tp = pp = config.tensor_model_parallel_size = config.pipeline_model_parallel_size = 1
        else:
            os.environ[NEMO_MEGATRON_MODEL_PARALLEL_APPSTATE_OVERRIDE] = "true"
    state, counts, model = AppState(), [], None
    for rank in range(tp * pp):
        state.world_size = state.model_parallel_size = tp * pp
        state.global_rank = state.local_rank = rank
        state.data_parallel_rank = 0
        state.tensor_model_parallel_size, state.pipeline_model_parallel_size = tp, pp
        state.pipeline_model_parallel_rank, state.tensor_model_parallel_rank = divmod(rank, tp)
        model = call(override_config_path=config, strict=True)
        counts.append(len(model.state_dict()))
    return counts, model, whole


def compute(model: Any, whole: bool, reference: Any, count: int) -> dict[str, tuple[Any, Any]]:
    """What NeMo's model computes, and what transformers' does."""
    tokens = (torch.arange(count) * 7 % 90 + 3)[None]
    model = model.float().eval()
    if hasattr(model, "enc_dec_model"):
        asked, given = tokens, tokens[:, : count // 2 + 1].flip(1)
        masks = (torch.ones_like(asked), torch.ones_like(given))
        ours = model.enc_dec_model(
            enc_input_ids=asked, enc_attn_mask=masks[0], dec_input_ids=given, dec_attn_mask=masks[1]
        )
        return {"logits": (ours, reference(input_ids=asked, decoder_input_ids=given).logits)}
    core = model.model
    if "Bert" not in type(model).__name__:
        import megatron.core.parallel_state as parallel
        from megatron.core.utils import GlobalMemoryBuffer

        parallel._GLOBAL_MEMORY_BUFFER = parallel._GLOBAL_MEMORY_BUFFER or GlobalMemoryBuffer()
        hidden = torch.ones(1, 1, count, count).triu(1).bool()
        ours = core(tokens, torch.arange(count)[None], hidden)
        return {"logits": (ours, reference(tokens).logits)}
    kinds, mask = (torch.arange(count) > count // 2).long()[None], torch.ones(1, count, dtype=torch.long)
    theirs = reference(input_ids=tokens, attention_mask=mask, token_type_ids=kinds)
    if whole:
        core.embedding_head = type("Plain", (torch.nn.Module,), {"forward": lambda self, x, _mask: x})()
        states = core(tokens, mask, kinds)
        pooled = core.pooler(states, 0)
        return {
            "states": (states.transpose(0, 1), theirs.last_hidden_state),
            "pooled": (pooled, theirs.pooler_output),
        }
    first, second = core(tokens, mask, kinds)
    if hasattr(theirs, "prediction_logits"):
        return {
            "masks": (first.transpose(0, 1), theirs.prediction_logits),
            "sentences": (second, theirs.seq_relationship_logits),
        }
    return {
        "states": (first.transpose(0, 1), theirs.last_hidden_state),
        "pooled": (second, theirs.pooler_output),
    }


def main(archive: str, name: str, folder: str, hf_class: str, count: str) -> None:
    paths = Path(archive).resolve(), Path(folder).resolve()
    mend()
    module, _, kind = name.rpartition(".")
    os.chdir(tempfile.mkdtemp())
    counts, model, whole = restore(paths[0], getattr(importlib.import_module(module), kind))
    answer: dict[str, Any] = {"class": type(model).__name__, "entries": counts}
    if len(counts) == 1:
        import transformers

        reference = getattr(transformers, hf_class).from_pretrained(
            paths[1], torch_dtype=torch.float32, attn_implementation="eager"
        )
        with torch.no_grad():
            found = compute(model, whole, reference.eval(), int(count))
        answer["differences"] = {
            key: ((a[..., : b.shape[-1]] - b).abs().max() / b.abs().max()).item()
            for key, (a, b) in found.items()
        }
    print(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
