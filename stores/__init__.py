"""Where bytes lie: local files to read from, outputs that appear whole or not at all."""
