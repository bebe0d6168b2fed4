"""Runs in an environment that has NeMo 2: one job on a vision-language model, one JSON line.

python vision_child.py import HF_DIR OURS OUT     NeMo's importer, with the config that OURS' context builds
python vision_child.py export OURS OUT            NeMo's exporter
python vision_child.py logits OURS INPUTS OUT     NeMo's model, loaded by NeMo, on the arguments in INPUTS
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import stand_ins
import te_arithmetic

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # what megatron-core compiles runs as it is written
stand_ins.install()
te_arithmetic.install()
#: packages that import every model and its data loading (torchvision, decord, ...) at their start
EAGER = ("vlm", "vlm.neva", "vlm.qwen2vl", "vlm.neva.data", "vlm.qwen2vl.data")
PARTS = ("language_transformer_config", "vision_transformer_config", "vision_projection_config")


def leave_out_eager_imports() -> None:
    """Let NeMo's packages have their modules without importing all of them."""
    import nemo.collections

    for name in EAGER:
        package = types.ModuleType(f"nemo.collections.{name}")
        folder = Path(nemo.collections.__path__[0], *name.split("."))
        package.__path__ = [str(folder)]
        sys.modules[package.__name__] = package
    for name in ("neva.model.llava", "qwen2vl.model.qwen2vl"):  # where connectors register themselves
        importlib.import_module(f"nemo.collections.vlm.{name}")


def on_cpu(config: Any) -> Any:
    """A model's config, to be built where there is no GPU, nor kernels of TransformerEngine."""
    for part in PARTS:
        getattr(config, part).use_cpu_initialization = True
        getattr(config, part).apply_rope_fusion = False
    return config


def importer_for(config: Any) -> Any:
    from nemo.collections.vlm.neva.model.llava import HFLlavaImporter
    from nemo.collections.vlm.qwen2vl.model.qwen2vl import HFQwen2VLImporter

    return HFLlavaImporter if type(config).__name__ == "LlavaConfig" else HFQwen2VLImporter


def bring(source: Path, ours: Path, out: Path) -> dict[str, Any]:
    """NeMo's importers know their models in the published sizes only, so that the sizes are those of ours."""
    from nemo.lightning.io import load_context

    whole = load_context(ours)
    config = on_cpu(load_context(ours, subpath="model.config"))
    assert type(config) is type(whole.model.config)

    class Sized(importer_for(config)):  # type: ignore[misc]
        config = property(lambda _self: config)

    Sized(str(source)).apply(out)
    return {"model": type(whole.model).__name__, "version": getattr(whole.model, "model_version", None)}


def export(ours: Path, out: Path) -> dict[str, Any]:
    from nemo.lightning.io.api import load_connector_from_trainer_ckpt

    load_connector_from_trainer_ckpt(ours, "hf")(overwrite=True, output_path=out)
    return {"files": sorted(file.name for file in out.iterdir())}


def logits(ours: Path, inputs: Path, out: Path) -> dict[str, Any]:
    import nemo.lightning.io.api as api
    import nemo.lightning.io.pl as loader
    import torch

    loader._fix_tensors_device = lambda checkpoint: checkpoint  # it asks for the current CUDA device
    load = api.load_context

    def load_context(*given: Any, **named: Any) -> Any:
        model = load(*given, **named)
        on_cpu(model.config)
        return model

    api.load_context = load_context
    config = load(ours, subpath="model.config")
    model, _ = importer_for(config)(str(ours)).nemo_load(ours)
    module = model.module.eval()
    with torch.no_grad():
        torch.save(module(**torch.load(inputs)), out)
    return {"module": type(module).__name__}


if __name__ == "__main__":
    leave_out_eager_imports()
    job, *folders = sys.argv[1:]
    paths = [Path(folder).resolve() for folder in folders]
    print(json.dumps({"import": bring, "export": export, "logits": logits}[job](*paths)))
