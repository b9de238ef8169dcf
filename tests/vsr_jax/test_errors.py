"""What an error tells."""

from __future__ import annotations

import errno

from vsr_jax import errors


def test_a_full_disk_that_a_library_tells_of_is_known():
  told = ValueError("UNKNOWN: write failed: No space left on device [source locations='x']")
  error = RuntimeError("a save failed")
  assert not errors.is_full(error)
  error.__cause__ = told
  assert errors.is_full(error)
  assert errors.is_full(OSError(errno.EDQUOT, "Disk quota exceeded"))
  assert not errors.is_full(OSError(errno.EACCES, "Permission denied"))
