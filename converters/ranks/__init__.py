"""State dicts cut by model-parallel rank."""
