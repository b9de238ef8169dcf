"""A page on which clips are restored and compared: `python -m vsr_jax.page`, see docs/page.md."""

from __future__ import annotations
