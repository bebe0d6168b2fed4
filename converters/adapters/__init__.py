"""Adapters beside a base model: LoRA as Hugging Face's PEFT stores it."""
