"""From clips on disk to training batches."""

from __future__ import annotations
