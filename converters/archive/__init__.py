"""Any ``.nemo`` archive: the container, and models that are no Megatron language models."""
