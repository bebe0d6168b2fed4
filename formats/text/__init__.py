"""Text out of a checkpoint as plain data: JSON, YAML, and Fiddle's graphs."""
