"""Sweeps: rows of a table of ablations, trained and scored; see `vsr_jax.sweep`."""
