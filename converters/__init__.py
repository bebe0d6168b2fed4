"""One class per checkpoint format, and the operations that compose them."""
