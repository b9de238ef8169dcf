"""FMA-Net (CVPR 2024): joint video super-resolution and deblurring."""

from __future__ import annotations

from vsr_jax import __version__ as __version__
from vsr_jax import errors

errors.catch_signals_of_a_command()
errors.silence_xla_of_a_command()
