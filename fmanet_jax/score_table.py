"""The table of scores that evaluating makes: as JSON, as Markdown, in files."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import pathlib
from typing import Any

from vsr_jax import files
from vsr_jax.errors import UserError
from vsr_jax.metrics import Score

PLACES = {"psnr": 2, "ssim": 4, "tof": 3}
LABELS = {"psnr": "PSNR", "ssim": "SSIM", "tof": "tOF"}


@dataclasses.dataclass
class ScoreTable:
  """What an evaluation has found so far.

  Attributes:
    method: name of the method that is scored; a heading of the table.
    setting: JSON entries that describe the evaluation (data, checkpoint, margin, ...).
    scores: clip name -> (scores of bicubic enlargement, scores of the method).
    skipped: by clip, why it could not be scored.
    complete: whether no clip is left to do.
  """

  method: str
  setting: dict[str, Any]
  scores: dict[str, tuple[Score, Score]] = dataclasses.field(default_factory=dict)
  skipped: dict[str, str] = dataclasses.field(default_factory=dict)
  complete: bool = False


def to_json(table: ScoreTable) -> dict[str, Any]:
  """The table as JSON entries: means in full precision, null where there is none.

  The infinite PSNR of a frame that equals its truth and the tOF of a single frame become null.
  """
  total = [sum(scores, Score()) for scores in zip(*table.scores.values(), strict=True)]
  return {
    "complete": table.complete,
    "method": table.method,
    **table.setting,
    "clips": [{"name": name, **_row(*scores)} for name, scores in table.scores.items()],
    "total": _row(*(total or (Score(), Score()))),
    "skipped": table.skipped,
  }


def _row(bicubic: Score, restored: Score) -> dict[str, Any]:
  baseline, ours = bicubic.compute(), restored.compute()
  difference = {name: ours[name] - baseline[name] for name in ours}
  columns = {"bicubic": baseline, "restored": ours, "difference": difference}
  finite = {
    column: {name: x if math.isfinite(x) else None for name, x in means.items()}
    for column, means in columns.items()
  }
  return {"frames": restored.frames, **finite}


def to_markdown(entries: dict[str, Any]) -> str:
  """The entries of `to_json` as a Markdown table with notes."""
  head = ["clip", "frames"]
  for column in ("bicubic", _cell(entries["method"]), "difference"):
    head += [f"{column} {label}" for label in LABELS.values()]
  lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
  for row in [*entries["clips"], {"name": "total", **entries["total"]}]:
    cells = [_cell(row["name"]), str(row["frames"])]
    for column, sign in (("bicubic", ""), ("restored", ""), ("difference", "+")):
      for name, places in PLACES.items():
        x = row[column][name]
        cells.append("–" if x is None else f"{x:{sign}.{places}f}")
    lines.append(cells)
  margin = entries["left_out_at_each_end"]
  left_out = f"all frames but {margin} at each end of a clip" if margin else "all frames"
  notes = [
    f"RGB PSNR in dB, SSIM, tOF in pixels (lower is better): means over {left_out}; "
    "4 pixels along the edges are left out of PSNR and SSIM."
  ]
  if not entries["complete"]:
    notes.append("Incomplete: the run has not reached every clip.")
  if entries["skipped"]:
    skipped = [f"{name} ({reason})" for name, reason in entries["skipped"].items()]
    count = len(skipped) + len(entries["clips"])
    notes.append(f"Skipped {len(skipped)} of {count} clips: {'; '.join(skipped)}.")
  table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
  return "\n\n".join([table, *notes])


def _cell(text: str) -> str:
  return text.replace("|", r"\|")


def write(folder: pathlib.Path, table: ScoreTable) -> None:
  """Writes metrics.json and metrics.md, each atomically.

  Raises:
    UserError: a file cannot be written.
    OSError: the disk is full.
  """
  entries = to_json(table)
  texts = {
    "metrics.json": json.dumps(entries, indent=1, allow_nan=False),
    "metrics.md": to_markdown(entries),
  }
  for name, text in texts.items():
    path = folder / name
    try:
      files.write_whole(path, f"{text}\n")
    except OSError as e:
      if e.errno in (errno.ENOSPC, errno.EDQUOT):
        raise
      raise UserError(f"{path}: cannot be written ({e.strerror}); name another --out") from e
