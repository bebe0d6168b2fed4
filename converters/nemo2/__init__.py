"""NeMo 2 directories."""
