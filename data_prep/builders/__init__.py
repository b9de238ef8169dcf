"""Data sets as TFDS builders, each in its own package, and readers of their downloads."""
