"""Data sets as TFDS builders, each in a package of its own, and how their downloads are read."""
