"""``.nemo`` archives of NeMo 1's Megatron language models."""
