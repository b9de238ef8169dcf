"""Command: tries damaged files, killed runs and runs beside each other, and counts how they end.

  python -m tests.fuzz [--seed N] [--scale F] [--jobs N] [--only TEXT ...] [--keep DIR]

Every case ends well (exit code 0, and a result that is whole), is refused well (exit code 2, one
line, nothing left behind, within a minute and 1.5 GB), or has failed. The same seed gives the same
damaged files; a failed one is tried alone, and its files kept, by --only NAME --keep DIR.
"""

from __future__ import annotations

import argparse
import collections
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import tqdm

from tests.fuzz import checkpoints, indexes, kills, videos
from tests.fuzz.runner import DONE, FAILED, REFUSED, Case, Outcome, run_cases
from vsr_jax import cli

# Cases of each kind in a whole campaign.
VIDEOS, CHECKPOINTS, SETS, FRAMES = 500, 300, 200, 3000
KILLS = {"train": 4, "prepare": 3, "flow_labels": 3, "build": 2}


def main() -> None:
  """Runs the command; see the module's docstring."""
  args = _parse()
  began = time.monotonic()
  counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary if args.keep is None else args.keep)
    # Trainers that are killed and resumed compile one program once. The campaign has a folder of
    # its own: JAX warns of entries that others are just writing, and a warning is a failure here.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "programs")
    for outcome in tqdm.tqdm(_outcomes(folder, args), unit="case", desc="fuzz", total=_total(args)):
      group = outcome.name.partition(":")[0].rstrip("0123456789 ")
      counts[group][outcome.kind] += 1
      if outcome.kind == FAILED:
        tqdm.tqdm.write(f"FAILED {outcome.name}\n{outcome.said}", file=sys.stderr)
  print(f"{'':16}{'tried':>8}{'done':>8}{'refused':>9}{'failed':>8}")
  for group, found in counts.items():
    columns = found.total(), found[DONE], found[REFUSED], found[FAILED]
    print("{:16}{:8}{:8}{:9}{:8}".format(group, *columns))
  failed = sum(found[FAILED] for found in counts.values())
  print(f"seed {args.seed}: {failed} failed; {time.monotonic() - began:.0f} s")
  if failed:
    sys.exit(1)


def _parse() -> argparse.Namespace:
  parser = cli.Parser("tests.fuzz", __doc__)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of cases")
  parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at once")
  parser.add_argument(
    "--only", nargs="+", default=[""], metavar="TEXT", help="cases whose names hold one of them"
  )
  parser.add_argument("--keep", metavar="DIR", help="a new folder for the files, which stay")
  return parser.parse_args()


def _total(args: argparse.Namespace) -> int | None:
  if args.only != [""]:
    return None
  return sum(round(args.scale * n) for n in (VIDEOS, 4 * CHECKPOINTS, 5 * SETS)) + (
    1 + sum(KILLS.values()) + 4
  )


def _outcomes(folder: pathlib.Path, args: argparse.Namespace) -> Iterator[Outcome]:
  cases = (case for case in _cases(folder, args) if _chosen(case.name, args))
  yield from run_cases(cases, args.jobs)
  rng = np.random.default_rng((args.seed, 1))
  chosen = [name for name in KILLS if _chosen(f"kills {name}", args)]
  if chosen:
    for job in kills.jobs(folder / "inputs"):
      if job.name in chosen:
        yield from kills.kill_at_random(folder / "killed", job, KILLS[job.name], rng)
  if _chosen("pairs", args):
    yield from kills.two_at_once(folder / "pairs")


def _chosen(name: str, args: argparse.Namespace) -> bool:
  return any(text in name for text in args.only)


def _cases(folder: pathlib.Path, args: argparse.Namespace) -> Iterator[Case]:
  video_count, checkpoint_count, set_count = (
    round(args.scale * n) for n in (VIDEOS, CHECKPOINTS, SETS)
  )
  yield from videos.long_stream(folder / "stream", max(1000, round(args.scale * FRAMES)))
  yield from videos.damaged_videos(folder / "videos", video_count, args.seed)
  yield from checkpoints.damaged_checkpoints(folder / "checkpoints", checkpoint_count, args.seed)
  yield from indexes.damaged_sets(folder / "sets", set_count, args.seed)


if __name__ == "__main__":
  cli.run(main)
