"""Values of KEEP: its ablations."""

from __future__ import annotations
