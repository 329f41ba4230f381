"""What the experiments of a family share: a config with every key, and named variants of it."""
