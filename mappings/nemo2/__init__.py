"""The config classes of NeMo 2: how their fields correspond to a model config, and their defaults."""
