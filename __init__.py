"""nemoconv: bit-exact conversion between NeMo, Megatron and Hugging Face checkpoints.

    import nemoconv

    nemoconv.convert("Llama-3.2-1B", "out", to="nemo2", tensor_parallel_size=2)
    with nemoconv.open("out") as checkpoint:
        rows = checkpoint.read("decoder.layers.0.mlp.linear_fc2.weight", (slice(0, 4),))

Importing this package imports nothing heavy: no numpy, no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import errors
    from .converters.base import Checkpoint
    from .converters.look.inspect import inspect
    from .converters.look.verify import Health, verify
    from .converters.registry import open_checkpoint as open  # noqa: A004
    from .converters.run.compare import Comparison
    from .converters.run.convert import convert, plan
    from .converters.run.plan import Report
    from .converters.run.reshard import reshard
    from .errors import NemoconvError
    from .version import __version__

# Nothing is imported when this file is: whoever meets it under another name, as pytest does in a clone, must
# not make a second package of it.
_LAZY = {
    "Checkpoint": "nemoconv.converters.base:Checkpoint",
    "Comparison": "nemoconv.converters.run.compare:Comparison",
    "Health": "nemoconv.converters.look.verify:Health",
    "NemoconvError": "nemoconv.errors:NemoconvError",
    "Report": "nemoconv.converters.run.plan:Report",
    "__version__": "nemoconv.version:__version__",
    "convert": "nemoconv.converters.run.convert:convert",
    "errors": "nemoconv.errors:",
    "inspect": "nemoconv.converters.look.inspect:inspect",
    "open": "nemoconv.converters.registry:open_checkpoint",
    "plan": "nemoconv.converters.run.convert:plan",
    "reshard": "nemoconv.converters.run.reshard:reshard",
    "verify": "nemoconv.converters.look.verify:verify",
}

__all__ = [
    "Checkpoint",
    "Comparison",
    "Health",
    "NemoconvError",
    "Report",
    "__version__",
    "convert",
    "errors",
    "inspect",
    "open",
    "plan",
    "reshard",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'nemoconv' has no attribute {name!r}")
    from importlib import import_module

    module, _, attribute = _LAZY[name].partition(":")
    found = import_module(module)
    return getattr(found, attribute) if attribute else found
