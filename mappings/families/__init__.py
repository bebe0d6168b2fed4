"""What several architectures share: names, blocks, rules of a family."""
