"""Times how training batches are read: samples a second, cost of each stage, cores that are needed.

    python -m benchmarks.data [--video FILE] [--threads N] [--out DIR]

The same as `python -m benchmarks --only data`; README.md beside this file tells how it measures.
This module imports no framework, because its process stays alive while workers run.
"""

from __future__ import annotations

import io
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import compare
from vsr_jax import cli
from vsr_jax.files import write_whole

# Per pipeline: frames per sample, samples per measured batch, samples per batch in the paper.
PIPELINES = {
  "keep_images": (1, 4, {"stage I, 8 images": 8}),
  "keep_clips": (8, 2, {"stage II, 2 clips": 2, "stage III, 4 clips": 4}),
  "fmanet": (3, 4, {"8 windows": 8}),
}
TITLES = {
  "keep_images": "KEEP, image",
  "keep_clips": "KEEP, clip of 8 frames",
  "fmanet": "FMA-Net, window of 3",
}
SET_SIZES = (1, 8000)  # how often a set repeats each of 2 clips: VFHQ has 16,000
CHART = "data_stages.png"
_VIDEO = compare.ROOT / "fmanet_jax/assets/demo_clip/truth.mp4"

Table = list[tuple[str, str, str, str]]


def measure(settings: compare.Settings) -> dict[str, Any]:
  """Makes clips of a video, then times every pipeline with 1, 2, 4, ... workers.

  Returns:
    The JSON entries: the video, CPU milliseconds by stage, and all runs.
  """
  s, data = settings, settings.scratch / "data"
  source = s.video or _VIDEO
  made = _run(s, "prepare", data=data, video=source.resolve())
  result: dict[str, Any] = {"video": source.name, "bytes_a_face": made["bytes_a_face"]}
  workers = [2**k for k in range(s.threads.bit_length())]  # up to the number of CPUs
  result |= {"workers": workers, "stages": {}, "feed": {}, "runs": [made]}
  for name, (_, batch, _) in PIPELINES.items():
    stages = _run(s, "stages", data=data, pipeline=name, count=s.samples)
    result["stages"][name] = stages["milliseconds"]
    runs = {count: [] for count in workers}
    for i in range(s.repeats):
      for count in workers[:: 1 if i % 2 == 0 else -1]:
        how = {"pipeline": name, "batch": batch, "workers": count, "count": s.samples}
        runs[count].append(_run(s, "feed", data=data, **how))
    result["feed"][name] = {str(count): repeats for count, repeats in runs.items()}
    result["runs"] += [stages, *(run for repeats in runs.values() for run in repeats)]
  how = {"pipeline": "keep_clips", "batch": 2, "workers": 1, "count": s.samples}
  sets = [_run(s, "feed", data=data, repeats=repeats, **how) for repeats in SET_SIZES]
  result["memory"] = [run["memory"] for run in sets]
  result["runs"] += sets
  return result


def _run(settings: compare.Settings, job: str, **options: Any) -> compare.Run:
  return compare.run_worker(settings, sys.executable, "data_worker", job, **options)


def table(result: dict[str, Any]) -> Table:
  """Makes the table of `measure`'s result; columns are for one and for the most workers."""
  one, *_, most = result["workers"] * 2
  rows = []
  for name, (frames, _, papers) in PIPELINES.items():
    title, feed = TITLES[name], result["feed"][name]
    rate = {n: 1 / statistics.median(run["seconds"] for run in feed[str(n)]) for n in (one, most)}
    cells = [f"{rate[n]:.3g}" for n in (one, most)]
    rows.append((f"{title}: a second", *cells, f"{rate[most] / rate[one]:.2f}"))
    if frames > 1:
      cells = [f"{frames * rate[n]:.3g}" for n in (one, most)]
      rows.append((f"{title}: frames a second", *cells, ""))
    memory = [1e-9 * max(run["memory"] for run in feed[str(n)]) for n in (one, most)]
    rows.append((f"{title}: memory, all processes (GB)", *(f"{x:.2f}" for x in memory), ""))
    for what, count in papers.items():
      need = f"{title}: cores for a step a second, {what}"
      rows.append((need, f"{count / rate[one]:.2g}", "", ""))
    for stage, milliseconds in result["stages"][name].items():
      rows.append((f"{title}: {stage} (ms)", f"{milliseconds:.1f}", "", ""))
  for count, memory in zip(SET_SIZES, result["memory"], strict=True):
    what = f"{TITLES['keep_clips']}: memory, {count} times the clips (GB)"
    rows.append((what, f"{1e-9 * memory:.3f}", "", ""))
  return rows


def draw(result: dict[str, Any], path: pathlib.Path) -> bool:
  """Draws the cost of each stage as bars, one colour per pipeline; False without matplotlib."""
  try:
    from matplotlib import figure
  except ImportError:
    return False
  page = figure.Figure(figsize=(9, 6.5), layout="constrained")
  heights = [len(stages) for stages in result["stages"].values()]
  charts = page.subplots(len(PIPELINES), 1, height_ratios=heights)
  for axis, (name, stages) in zip(charts, result["stages"].items(), strict=True):
    bars = axis.barh(list(stages), list(stages.values()), color="tab:blue")
    axis.bar_label(bars, fmt="%.1f", padding=3)
    axis.invert_yaxis()
    axis.margins(x=0.1)
    axis.set_title(f"{TITLES[name]}: {sum(stages.values()):.0f} ms", loc="left", fontsize="medium")
  charts[-1].set_xlabel("milliseconds of a CPU, a sample")
  picture = io.BytesIO()
  page.savefig(picture, dpi=110, format="png")
  write_whole(path, picture.getvalue())
  return True


def main(arguments: Sequence[str] | None = None) -> None:
  """Runs this part of the benchmark; `arguments` are those of the command line unless given."""
  from benchmarks import __main__ as command

  command.main(["--only=data", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
  cli.run(main)
