"""Runs in an environment that has NeMo 2: loads a mixture of experts as NeMo's exporters do.

python moe_child.py NEMO_DIR OUT      every parameter, by the name of its module, into OUT.safetensors
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import stand_ins

stand_ins.install()

import torch  # noqa: E402
import transformer_engine.pytorch as engine  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402

#: kernels that only a GPU has
OFF = """gradient_accumulation_fusion bias_activation_fusion bias_dropout_fusion masked_softmax_fusion
    persist_layer_norm moe_permute_fusion apply_rope_fusion perform_initialization""".split()


class GroupedLinear(torch.nn.Module):
    """TransformerEngine's, as far as its state goes: a parameter for each expert."""

    def __init__(self, num_gemms: int, in_features: int, out_features: int, **named: Any) -> None:
        super().__init__()
        self.num_gemms, self.use_bias = num_gemms, named.get("bias", True)
        self.fp8_meta, self.fp8, self.fp8_calibration = {"fp8_checkpoint": False}, False, False
        assert not self.use_bias
        for number in range(num_gemms):
            empty = torch.full((out_features, in_features), float("nan"), dtype=named.get("params_dtype"))
            setattr(self, f"weight{number}", torch.nn.Parameter(empty))

    def init_fp8_metadata(self, num_gemms: int = 1) -> None: ...

    def get_extra_state(self) -> None: ...

    def set_extra_state(self, state: Any) -> None: ...


class OnCPU(TorchFunctionMode):
    """What the token dispatcher allocates on CUDA may lie on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


def load(source: Path, out: Path) -> dict[str, Any]:
    import nemo.lightning.io.pl as loader
    from nemo.collections.llm.gpt.model.base import GPTConfig
    from nemo.collections.llm.gpt.model.deepseek import HFDeepSeekExporter
    from safetensors.torch import save_file

    loader._fix_tensors_device = lambda checkpoint: checkpoint  # it asks for the current CUDA device
    configure = GPTConfig.configure_model

    def without_kernels(self: Any, *args: Any, **named: Any) -> Any:
        for name in OFF:
            setattr(self, name, False)
        return configure(self, *args, **named)

    GPTConfig.configure_model = without_kernels
    with OnCPU():
        model, _ = HFDeepSeekExporter(source).nemo_load(source)  # which knows nothing of DeepSeek
        module = model
        while hasattr(module, "module"):
            module = module.module
        state = {name: p for name, p in module.state_dict().items() if not name.endswith("_extra_state")}
        save_file({name: p.detach().clone().contiguous() for name, p in state.items()}, out)
    return {"config": type(model.config).__name__, "mtp_num_layers": model.config.mtp_num_layers}


if __name__ == "__main__":
    engine.GroupedLinear = GroupedLinear
    source, out = (Path(name).resolve() for name in sys.argv[1:])
    print(json.dumps(load(source, out)))
