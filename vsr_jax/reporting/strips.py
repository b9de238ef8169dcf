"""Strips of frames in which rows differ most, and least, from the base: input, each row, truth."""

from __future__ import annotations

import pathlib
import statistics
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from vsr_jax import drawing, guards, json_files
from vsr_jax.errors import UserError
from vsr_jax.frame_strip import INPUT, TRUTH
from vsr_jax.images import encode_image, read_image
from vsr_jax.json_files import array, fields, integer, mapping, number, text
from vsr_jax.reporting.comparison import METRICS, Rows, shown
from vsr_jax.reporting.pages import Block, Picture, Text
from vsr_jax.reporting.sweeps import Sweep, Trial
from vsr_jax.sweeps.record import EVALUATION

_INDEX = fields(
  {
    "height": integer(1, 4096),
    "widths": mapping(text, integer(1, 16384)),
    "frames": array(
      fields({"number": integer(), "scores": mapping(text, mapping(text, number()))}), 1, 100
    ),
  }
)
_FEW = 6  # columns, up to which frames are shown as they are
_SMALL = 160  # pixels of height, with more

_MAPS = {
  "fmanet": "The same frames: the flow by which Net^D warps the frame before (its hue is the "
  "direction, white is no motion, black is masked), of rows that have one.",
  "keep": "The same frames: gains (black is 0, the observation alone; white is 1, the prediction "
  "alone) and the flow to the frame before (its hue is the direction, white is no motion).",
}

_REMEDY = "evaluate this row again"


class Shown(NamedTuple):
  """A frame that all rows show: its clip's name, its number, and what the rows gain in it."""

  clip: str
  number: int
  gain: float


def strips(sweep: Sweep, rows: Rows) -> Iterator[Block]:
  """The best, the median and the worst frame of those that the evaluations show, of the first seed.

  The rule: by the mean over rows of their PSNR's, or for KEEP LPIPS's, gain over the base row.

  Raises:
    UserError: a strip is damaged.
  """
  trials = {row: trials[0] for row, trials in rows.items()}
  if sweep.base not in trials or len(trials) < 2:
    yield Text("No strips: they need the base row and another one.")
    return
  indexes = {row: _indexes(trial) for row, trial in trials.items()}
  metric, frames = _rank(sweep, trials, indexes)
  if not frames:
    yield Text("No strips: the rows' evaluations have none of the same frames.")
    return
  picks = {
    "best": frames[0],
    "median": frames[len(frames) // 2],
    "worst": frames[-1],
  }
  told = ", ".join(
    f"{name} {x.clip} frame {x.number} ({shown(METRICS[metric], x.gain, signed=True)})"
    for name, x in picks.items()
  )
  text = (
    f"From above: {told}. Chosen of the {len(frames)} frames that the evaluations show by the mean "
    f"over rows of the {METRICS[metric].label} that they gain over {sweep.base}, above 0 for the "
    f"better; seed {next(iter(trials.values())).seed}."
  )
  cuts = [_cuts(trials, indexes, frame) for frame in picks.values()]
  yield Picture(f"{sweep.system}_strips", text, _draw([_line(trials, x) for x in cuts]))
  if (lines := [_maps(trials, x) for x in cuts])[0]:
    yield Picture(f"{sweep.system}_maps", _MAPS[sweep.system], _draw(lines))


def _draw(lines: list[dict[str, np.ndarray]]) -> bytes:
  """PNG of lines of pictures by title; of titles that all have."""
  titles = [title for title in lines[0] if all(title in line for line in lines)]
  height = 256 if len(titles) <= _FEW else _SMALL
  same = [{title: drawing.at_height(line[title], height) for title in titles} for line in lines]
  return encode_image(drawing.columns(same, height))


def _indexes(trial: Trial) -> dict[str, Any]:
  """What the strips of a trial's evaluation hold, by clip, of those that are there."""
  assert trial.metrics is not None  # rows that are compared are complete
  found = {}
  for clip in trial.metrics["clips"]:
    path = _path(trial, clip["name"], "json")
    try:
      found[clip["name"]] = json_files.load(path, _INDEX, remedy=_REMEDY)
    except FileNotFoundError:
      continue
    except OSError as e:
      raise UserError(f"{path}: cannot be read ({e.strerror or e}); {_REMEDY}") from e
  return found


def _path(trial: Trial, clip: str, kind: str) -> pathlib.Path:
  folder = trial.folder / EVALUATION / "strips"
  if not guards.is_name(f"{clip}.{kind}"):
    raise UserError(f"{folder}: {guards.shorten(clip)!r} is no name of a clip; {_REMEDY}")
  return folder / f"{clip}.{kind}"


def _rank(
  sweep: Sweep, trials: Mapping[str, Trial], indexes: Mapping[str, Mapping[str, Any]]
) -> tuple[str, list[Shown]]:
  """The metric, and the frames that all rows show with it, the best first."""
  by_frame: dict[tuple[str, int], dict[str, dict[str, float]]] = {}
  for row, index in indexes.items():
    for clip, strip in index.items():
      for frame in strip["frames"]:
        if (scores := frame["scores"].get(trials[row].method)) is not None:
          by_frame.setdefault((clip, frame["number"]), {})[row] = scores
  whole = {name: x for name, x in by_frame.items() if x.keys() == trials.keys()}
  every = [scores for x in whole.values() for scores in x.values()]
  metric = "lpips" if every and all("lpips" in scores for scores in every) else "psnr"
  sign, found = (1 if METRICS[metric].higher else -1), []
  for (clip, frame_number), x in whole.items():
    if all(metric in scores for scores in x.values()):
      others = [scores[metric] for row, scores in x.items() if row != sweep.base]
      gain = sign * (statistics.fmean(others) - x[sweep.base][metric])
      found.append(Shown(clip, frame_number, gain))
  return metric, sorted(found, key=lambda frame: -frame.gain)


def _cuts(
  trials: Mapping[str, Trial], indexes: Mapping[str, Mapping[str, Any]], frame: Shown
) -> dict[str, dict[str, np.ndarray]]:
  """By row the pictures of a frame, by title."""
  found = {}
  for row, trial in trials.items():
    index = indexes[row][frame.clip]
    numbers = [x["number"] for x in index["frames"]]
    found[row] = _cut(trial, frame.clip, index, numbers.index(frame.number))
  return found


def _line(
  trials: Mapping[str, Trial], cuts: Mapping[str, dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
  """The input, each row's frame, the truth."""
  first = next(iter(cuts.values()))
  rows = {row: cuts[row][trial.method] for row, trial in trials.items()}
  return {INPUT: first[INPUT], **rows, TRUTH: first[TRUTH]}


def _maps(
  trials: Mapping[str, Trial], cuts: Mapping[str, dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
  """Each row's gains and flows, where it has some."""
  return {
    f"{row}: {kind}": cuts[row][title]
    for kind in ("gain", "flow")
    for row, trial in trials.items()
    if (title := f"{kind} of {trial.method}") in cuts[row]
  }


def _cut(trial: Trial, clip: str, index: Mapping[str, Any], place: int) -> dict[str, np.ndarray]:
  """The columns of a row of a strip."""
  path, height = _path(trial, clip, "png"), index["height"]
  widths: Mapping[str, int] = index["widths"]
  try:
    picture = read_image(path)
  except OSError as e:
    raise UserError(f"{path}: cannot be read ({e.strerror or e}); {_REMEDY}") from e
  size = height * len(index["frames"]), sum(widths.values())
  if picture.shape[:2] != size or {INPUT, TRUTH, trial.method} - widths.keys():
    raise UserError(f"{path}: does not fit {path.with_suffix('.json').name}; {_REMEDY}")
  line, left, found = picture[place * height : (place + 1) * height], 0, {}
  for title, width in widths.items():
    found[title] = line[:, left : left + width]
    left += width
  return found
