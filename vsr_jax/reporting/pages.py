"""A report's blocks, and these as one page of HTML without anything beside it, and as Markdown."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Sequence
from typing import NamedTuple

Cell = str | tuple[str, ...]  # one line, or several


class Heading(NamedTuple):
  """A heading of level 1 to 3."""

  level: int
  text: str


class Text(NamedTuple):
  """A paragraph."""

  text: str


class Table(NamedTuple):
  """A table; its first `labels` columns are text, the others numbers."""

  header: Sequence[str]
  rows: Sequence[Sequence[Cell]]
  labels: int = 1


class Picture(NamedTuple):
  """A picture in PNG; `name` is its file's, for Markdown, and `text` says what it shows."""

  name: str
  text: str
  data: bytes


class Listing(NamedTuple):
  """Lines as they are, such as commands, under a title; folded away in HTML."""

  title: str
  lines: Sequence[str]


Block = Heading | Text | Table | Picture | Listing

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 80em; padding: 0 1em; }
table { border-collapse: collapse; display: block; margin: 1em 0; overflow-x: auto; }
td, th { border-bottom: 1px solid #ccc; padding: .3em .7em; text-align: right; }
td, th { vertical-align: top; white-space: nowrap; }
th { border-bottom: 2px solid #888; }
td.label, th.label { text-align: left; white-space: normal; }
td small { color: #555; }
img { max-width: 100%; }
pre { background: #f4f4f4; overflow-x: auto; padding: .7em; }
@media (prefers-color-scheme: dark) {
  body { background: #181818; color: #ddd; }
  td small { color: #aaa; }
  pre { background: #262626; }
  img { background: #fff; }
}
"""


def to_html(title: str, blocks: Sequence[Block]) -> str:
  """One page, in which pictures are written as data."""
  body = "\n".join(_HTML[type(block)](block) for block in blocks)
  return (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
    f"<body>\n{body}\n</body>\n</html>\n"
  )


def _table_html(table: Table) -> str:
  def row(cells: Sequence[Cell], tag: str) -> str:
    written = []
    for i, cell in enumerate(cells):
      first, *more = (cell,) if isinstance(cell, str) else cell
      lines = [html.escape(first), *(f"<small>{html.escape(line)}</small>" for line in more)]
      kind = ' class="label"' if i < table.labels else ""
      written.append(f"<{tag}{kind}>{'<br>'.join(lines)}</{tag}>")
    return f"<tr>{''.join(written)}</tr>"

  rows = "\n".join(row(cells, "td") for cells in table.rows)
  return f"<table>\n<thead>{row(table.header, 'th')}</thead>\n<tbody>\n{rows}\n</tbody>\n</table>"


def _picture_html(picture: Picture) -> str:
  data = base64.b64encode(picture.data).decode()
  text = html.escape(picture.text)
  return (
    f'<figure><img src="data:image/png;base64,{data}" alt="{text}">'
    f"<figcaption>{text}</figcaption></figure>"
  )


def _listing_html(listing: Listing) -> str:
  lines = html.escape("\n".join(listing.lines))
  return f"<details><summary>{html.escape(listing.title)}</summary><pre>{lines}</pre></details>"


_HTML: dict[type, Callable] = {
  Heading: lambda block: f"<h{block.level}>{html.escape(block.text)}</h{block.level}>",
  Text: lambda block: f"<p>{html.escape(block.text)}</p>",
  Table: _table_html,
  Picture: _picture_html,
  Listing: _listing_html,
}


def to_markdown(blocks: Sequence[Block], pictures: str) -> str:
  """The same as Markdown; `pictures` is the folder of its pictures, from where it lies."""

  def written(block: Block) -> str:
    match block:
      case Heading(level, text):
        return f"{'#' * level} {_escaped(text)}"
      case Text(text):
        return _escaped(text)
      case Table():
        return _table_markdown(block)
      case Picture(name, text, _):
        return f"![{_escaped(text)}]({pictures}/{name}.png)\n\n{_escaped(text)}"
      case Listing(title, lines):
        return "\n".join([f"{_escaped(title)}:", "", *(f"    {line}" for line in lines)])

  return "\n\n".join(written(block) for block in blocks) + "\n"


def _table_markdown(table: Table) -> str:
  def line(cells: Sequence[Cell]) -> str:
    shown = (cell if isinstance(cell, str) else "\n".join(cell) for cell in cells)
    return f"| {' | '.join(_escaped(text).replace(chr(10), '<br>') for text in shown)} |"

  marks = ["---" if i < table.labels else "---:" for i in range(len(table.header))]
  return "\n".join([line(table.header), f"| {' | '.join(marks)} |", *map(line, table.rows)])


def _escaped(text: str) -> str:
  """Text in which nothing is markup, not even in names from files."""
  for mark in "\\`*_[]|<>#":
    text = text.replace(mark, f"\\{mark}")
  return text
