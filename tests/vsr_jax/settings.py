"""What a process has set, to see that nothing is changed."""

from __future__ import annotations

import os
import signal

import jax


def settings() -> dict[str, object]:
  """What a process has set."""
  handlers = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
  # No public function tells them all, and a changed one is not in `jax.config.values`.
  of_jax = {name: holder.value for name, holder in jax.config._value_holders.items()}
  return {"environment": dict(os.environ), "handlers": handlers, "jax": of_jax}
