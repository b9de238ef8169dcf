"""Pictures of an evaluation, by clip: gains and flows, identity and landmarks over time."""

from __future__ import annotations

import collections
import io
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from keep_jax.streaming import Restorer
from vsr_jax import maps
from vsr_jax.files import write_whole
from vsr_jax.plotting import new_figure


def watched(restorer: Restorer) -> collections.deque:
  """The gains and flows of what a restorer will restore, one pair a frame of a single track."""
  seen: collections.deque = collections.deque()
  restorer.watch = lambda _, gain, flow: seen.append((gain, flow))
  return seen


def take_maps(seen: Mapping[str, collections.deque], drawn: bool) -> dict[str, np.ndarray]:
  """Takes away what was seen of a frame; as pictures by title if they are to be drawn."""
  taken = {name: queue.popleft() for name, queue in seen.items() if queue}
  if not drawn:
    return {}
  found = {}
  for name, (gain, flow) in taken.items():
    found[f"gain of {name}"] = maps.picture(maps.heat(gain)[0])
    found[f"flow of {name}"] = maps.picture(maps.flow_colours(flow)[0])
  return found


def save_curves(
  path: pathlib.Path,
  title: str,
  frames: Sequence[int],
  values: Mapping[str, Mapping[str, Sequence[float]]],
) -> None:
  """Draws a clip's identity similarity and landmark distance over time, a line a method, as PNG.

  Args:
    path: the file.
    title: of the picture.
    frames: numbers of the frames that the values are of.
    values: by method: "ids" and "akd", one a frame; one of them may be missing.

  Raises:
    UserError: matplotlib is not installed.
    OSError: the file cannot be written.
  """
  labels = {
    "ids": "identity similarity (higher is better)",
    "akd": "landmark distance, pixels at 512 (lower is better)",
  }
  drawn = [name for name in labels if any(name in series for series in values.values())]
  page = new_figure(9, 3 * len(drawn))
  axes = page.subplots(len(drawn), 1, squeeze=False, sharex=True)[:, 0]
  for name, axis in zip(drawn, axes, strict=True):
    for method, series in values.items():
      axis.plot(frames, series[name], label=method, linewidth=1.2, marker="." * (len(frames) < 2))
    axis.set_title(labels[name], fontsize="medium", loc="left")
    axis.grid(alpha=0.3)
  axes[0].legend(fontsize="small")
  axes[-1].set_xlabel("frame")
  page.suptitle(title)
  data = io.BytesIO()
  page.savefig(data, dpi=110, format="png")
  write_whole(path, data.getvalue())
