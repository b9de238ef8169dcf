"""KEEP (ECCV 2024): video face super-resolution by Kalman-inspired feature propagation."""

from __future__ import annotations
