"""Figures of matplotlib, which only the extra "plot" installs."""

from __future__ import annotations

import importlib.util
from typing import Any

from vsr_jax.errors import UserError


def is_installed() -> bool:
  """Whether figures can be made."""
  return importlib.util.find_spec("matplotlib") is not None


def new_figure(width: float, height: float) -> Any:
  """An empty matplotlib figure of so many inches.

  Raises:
    UserError: matplotlib is not installed.
  """
  try:
    from matplotlib import figure
  except ImportError:
    raise UserError('matplotlib is missing; install the extra: pip install -e ".[plot]"') from None
  return figure.Figure(figsize=(width, height), layout="constrained")
