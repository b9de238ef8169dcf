"""FMA-Net (CVPR 2024): joint video super-resolution and deblurring."""

from __future__ import annotations

from vsr_jax import __version__ as __version__
