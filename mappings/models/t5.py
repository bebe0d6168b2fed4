"""T5 1.1, Flan-T5 and UL2: a ``T5ForConditionalGeneration`` with a gated MLP and its own output layer."""

from ..families.t5 import t5_like

T5 = t5_like(
    "t5",
    "T5ForConditionalGeneration",
    {"vocab_size": 32128, "d_ff": 2048, "num_heads": 8},
    layers=6,
    gate="relu",
    scales=True,
)
