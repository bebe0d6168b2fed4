"""Runs in an environment that has NeMo 2: does one job with NeMo's own functions, prints one JSON line.

python child.py export NEMO_DIR OUT          load_context, whole and by subpath, and llm.export_ckpt
python child.py import HF_DIR OUT MODEL CONFIG     llm.import_ckpt with NeMo's classes of these names
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import stand_ins

stand_ins.install()


def export(source: Path, out: Path) -> dict[str, object]:
    import nemo.lightning.io.pl as loader
    from nemo.collections import llm
    from nemo.lightning.io import load_context

    loader._fix_tensors_device = lambda checkpoint: checkpoint  # it asks for the current CUDA device
    whole = load_context(source)
    config = load_context(source, subpath="model.config")
    assert type(config) is type(whole.model.config)
    llm.export_ckpt(source, "hf", output_path=out, overwrite=True)
    return {"config": type(config).__name__, "layers": config.num_layers}


def bring(source: Path, out: Path, model_name: str, config_name: str) -> dict[str, object]:
    from nemo.collections import llm

    model = getattr(llm, model_name)(getattr(llm, config_name)())
    llm.import_ckpt(model, f"hf://{source}", output_path=out, overwrite=True)
    return {"config": config_name}


if __name__ == "__main__":
    job, source, out, *names = sys.argv[1:]
    paths = Path(source).resolve(), Path(out).resolve()
    answer = export(*paths) if job == "export" else bring(*paths, *names)
    print(json.dumps(answer))
