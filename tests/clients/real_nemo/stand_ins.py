"""What NeMo asks for and a machine without a GPU has not: empty packages, TransformerEngine's parameters, CUDA.

NeMo's and megatron-core's own code stays as it is. The modules of TransformerEngine stand here with their
parameters and extra states only: loading and saving need no arithmetic.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import pickle
import sys
import types
from typing import Any

#: launchers and tools that NeMo imports at its start and a conversion never calls
LAUNCHERS = ("leptonai", "modelopt", "nvidia_resiliency_ext", "pangu")
ENGINE = "transformer_engine"
VERSION = "2.5.0"
#: without these megatron-core takes its own torch code
ABSENT = frozenset({"SplitAlongDim", "_SplitAlongDim", "optimizers"})


class _Anything(type):
    """A class that has every class attribute asked for."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _class(name)


def _class(name: str) -> type:
    return _Anything(name, (), {"__init__": lambda self, *_args, **_named: None})


class _Module(types.ModuleType):
    """A package that has every submodule, in lower case, and every class. Called, it does nothing."""

    __path__: list[str] = []
    __version__ = VERSION

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ABSENT:
            raise AttributeError(name)
        found = importlib.import_module(f"{self.__name__}.{name}") if name.islower() else _class(name)
        setattr(self, name, found)
        return found

    def __call__(self, *_args: Any, **_named: Any) -> Any:
        return contextlib.nullcontext(), None


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        root, _, last = name.partition(".")[0], None, name.rpartition(".")[2]
        if root not in (*LAUNCHERS, ENGINE) or last in ABSENT:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        if module.__name__ == f"{ENGINE}.pytorch":
            for layer in _layers():
                setattr(module, layer.__name__, layer)


def _layers() -> list[type]:
    """TransformerEngine's layers as far as their state goes."""
    import torch
    from torch.nn import Module, Parameter

    def parameter(*shape: int, like: dict[str, Any]) -> Parameter:
        return Parameter(torch.zeros(*shape, dtype=like.get("params_dtype") or torch.get_default_dtype()))

    class Base(Module):
        """Version 2 without FP8: the extra state is an empty tensor, and any is taken."""

        def get_extra_state(self) -> Any:
            return torch.empty(0, dtype=torch.uint8)

        def set_extra_state(self, state: Any) -> None:
            pass

    class DotProductAttention(Base):
        def __init__(self, *_args: Any, **_named: Any) -> None:
            super().__init__()

    class LayerNorm(Base):
        """Norms are operations there, whose extra state is a pickled dict."""

        has_bias = True

        def __init__(self, hidden_size: int | None = None, **named: Any) -> None:
            super().__init__()
            size = hidden_size if hidden_size is not None else named["normalized_shape"]
            self.weight = parameter(size, like=named)
            if self.has_bias:
                self.bias = parameter(size, like=named)

        def get_extra_state(self) -> Any:
            return torch.frombuffer(bytearray(pickle.dumps({})), dtype=torch.uint8)

    class RMSNorm(LayerNorm):
        has_bias = False

    class Linear(Base):
        def __init__(self, in_features: int, out_features: int, **named: Any) -> None:
            super().__init__()
            ranks = named.get("tp_size", 1)
            mode = self.parallel_mode = named.get("parallel_mode")
            out_features //= ranks if mode == "column" else 1
            in_features //= ranks if mode == "row" else 1
            self.weight = parameter(out_features, in_features, like=named)
            self.bias = parameter(out_features, like=named) if named.get("bias", True) else torch.Tensor()

    class LayerNormLinear(Linear):
        def __init__(self, in_features: int, out_features: int, **named: Any) -> None:
            super().__init__(in_features, out_features, **named)
            self.layer_norm_weight = parameter(in_features, like=named)
            if named.get("normalization", "LayerNorm") != "RMSNorm":
                self.layer_norm_bias = parameter(in_features, like=named)
            else:
                self.layer_norm_bias = None

    return [DotProductAttention, LayerNorm, RMSNorm, Linear, LayerNormLinear]


def install() -> None:
    """Before the first import of nemo or megatron."""
    sys.meta_path.insert(0, _Finder())
    known = importlib.metadata.version

    def version(name: str) -> str:
        return VERSION if name.lower().replace("_", "-") == "transformer-engine" else known(name)

    importlib.metadata.version = version
    _answer_for_cuda()
    import modelopt.torch.opt as optimizer

    nothing = staticmethod(lambda *_args, **_named: None)
    optimizer.ModeloptStateManager = type(
        "ModeloptStateManager", (), {"is_converted": staticmethod(lambda _model: False)}
    )
    optimizer.plugins = types.SimpleNamespace(
        restore_sharded_modelopt_state=nothing, save_sharded_modelopt_state=nothing
    )


def _answer_for_cuda() -> None:
    """Questions on the way of saving and loading that a CPU build of torch refuses to answer."""
    import torch

    if torch.cuda.is_available():
        return
    for name in ("synchronize", "set_device", "empty_cache", "Stream"):
        setattr(torch.cuda, name, lambda *_args, **_named: None)
    torch.cuda.is_initialized = lambda: True
    torch.cuda.current_device = lambda: torch.device("cpu")
    torch.cuda.stream = lambda _stream: contextlib.nullcontext()
    torch.Tensor.cuda = lambda self, *_args, **_named: self
    torch.nn.Module.cuda = lambda self, *_args, **_named: self
