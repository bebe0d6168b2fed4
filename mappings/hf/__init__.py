"""config.json: how its keys correspond to Megatron's config fields."""
