"""Has the commands and programs in modules' docstrings, indented by two, come out as code."""

from __future__ import annotations

import textwrap
from typing import Any

import griffe


class CodeBlocks(griffe.Extension):
  """Indents paragraphs that are indented as a whole by as much again, as Markdown asks for."""

  def on_module(self, *, mod: griffe.Module, **_: Any) -> None:
    """Changes the docstring of a module that was read."""
    if mod.docstring is not None:
      paragraphs = mod.docstring.value.split("\n\n")
      mod.docstring.value = "\n\n".join(
        textwrap.indent(p, "  ") if all(x.startswith("  ") for x in p.split("\n")) else p
        for p in paragraphs
      )
