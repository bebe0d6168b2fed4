"""The engine: plans of byte moves between files, and their execution in bounded memory."""
