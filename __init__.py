"""nemoconv: bit-exact conversion between NeMo, Megatron and Hugging Face checkpoints."""

__version__ = "0.1.0"
