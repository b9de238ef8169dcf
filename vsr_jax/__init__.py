"""Code that both restoration systems share: files, warps, flow, metrics, training, inference."""

from __future__ import annotations

__version__ = "0.2.0"
