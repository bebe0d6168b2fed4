"""mT5: an ``MT5ForConditionalGeneration``, a T5 of many languages under other defaults."""

from ..families.t5 import t5_like

MT5 = t5_like(
    "mt5",
    "MT5ForConditionalGeneration",
    {"vocab_size": 250112, "d_ff": 1024, "num_heads": 6},
    layers=8,
    gate="gated-gelu",
    scales=False,
    read_as="t5",
)
