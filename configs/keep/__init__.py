"""KEEP's values: the changes of its ablations."""

from __future__ import annotations
