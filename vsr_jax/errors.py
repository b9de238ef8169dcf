"""Errors that a user can mend, and what stops a command."""

from __future__ import annotations

import errno
import os

SAME_SIGNAL = 0.5  # seconds in which two signals count as one, sent to a process and to its group

_FULL = (errno.ENOSPC, errno.EDQUOT)


class UserError(Exception):
  """A mistake the user can mend; its text is one line that names the file and the remedy."""


class Terminated(BaseException):
  """SIGTERM arrived; a BaseException, like KeyboardInterrupt, so no `except Exception` stops it."""


def is_full(error: BaseException) -> bool:
  """Whether an error, or one that caused it, reports a full disk, be it only in its text."""
  told: BaseException | None = error
  while told is not None:
    if isinstance(told, OSError) and told.errno in _FULL:
      return True
    if any(os.strerror(number) in str(told) for number in _FULL):
      return True
    told = told.__cause__ or told.__context__
  return False
