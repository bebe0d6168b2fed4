"""``model_config.yaml`` of NeMo 1: how its keys correspond to a model config."""
