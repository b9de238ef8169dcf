"""Times FMA-Net and KEEP, against the released PyTorch code if its folder is given, and data.

    python -m benchmarks [--reference DIR] [--keep-reference DIR2] [--only A,B] [--out DIR] ...

Prints a table and writes it to benchmark.md, and every run to benchmark.json. README.md beside
this file tells how it measures.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import tempfile
from collections.abc import Sequence

from benchmarks import compare, compare_keep, data, report, workload
from vsr_jax import cli, files
from vsr_jax.errors import UserError

PARTS = {
  "restoration": compare.restoration,
  "training": compare.training,
  "keep": compare_keep.keep,
  "keep-training": compare_keep.training,
  "data": data.measure,
}


def main(arguments: Sequence[str] | None = None) -> None:
  """Runs the command; `arguments` are those of the command line unless given."""
  args = _parse(arguments)
  parts = args.only.split(",")
  if unknown := [name for name in parts if name not in PARTS]:
    raise UserError(f"--only {','.join(unknown)}: there are {', '.join(PARTS)}")
  if args.reference and not (args.reference / "model.py").is_file():
    raise UserError(f"{args.reference}: no model.py; give a checkout of the released FMA-Net")
  if args.video and not args.video.exists():
    raise UserError(f"{args.video}: no such file; name a video or a folder of frames")
  files.check_folder(args.out)
  with tempfile.TemporaryDirectory(prefix="benchmarks-") as scratch:
    settings = compare.Settings(
      scratch=pathlib.Path(scratch),
      **{name: getattr(args, name) for name in ("reference", "reference_python", "model")},
      **{name: getattr(args, name) for name in ("frames", "height", "width", "crop", "steps")},
      **{name: getattr(args, name) for name in ("repeats", "threads", "video", "samples")},
      **{name: getattr(args, name) for name in ("keep_reference", "keep_frames")},
    )
    load = os.getloadavg()[0]
    results = {name: PARTS[name](settings) for name in parts}
    if args.long and parts != ["keep"]:
      results["long"] = compare.long_clips(settings, full_size=args.long == "full")
    if args.long and "keep" in parts:
      results["keep_long"] = compare_keep.long_clips(settings, full_size=args.long == "full")
  entries = report.collect(args.threads, load, args.repeats, results)
  report.write(args.out, entries)
  print(report.to_markdown(entries))
  print(f"\nwritten to {args.out}/benchmark.md and benchmark.json")
  if "data" in results:
    drawn = data.draw(results["data"], args.out / data.CHART)
    print(f"{args.out / data.CHART}" if drawn else 'no chart: pip install -e ".[plot]"')


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  cpus = len(workload.available_cpus())
  parser = cli.Parser("benchmarks", __doc__)
  add = parser.add_argument
  add("--reference", type=pathlib.Path, metavar="DIR", help="a checkout of the released FMA-Net")
  add("--keep-reference", type=pathlib.Path, metavar="DIR", help="one of KEEP, with submodules")
  add("--reference-python", default=sys.executable, metavar="PATH", help="one that has PyTorch")
  add("--only", default=",".join(PARTS), metavar="A,B", help="default: %(default)s")
  add("--model", choices=workload.MODELS, default="full", help="of what restores: released or tiny")
  add("--frames", type=_count(3), default=4, metavar="N", help="of a clip; default: %(default)s")
  add("--height", type=_count(8), default=180, metavar="H", help="default: %(default)s")
  add("--width", type=_count(8), default=320, metavar="W", help="default: %(default)s")
  add("--keep-frames", type=_count(3), default=6, metavar="N", help="of KEEP's chunk, up to 20")
  add("--crop", type=_count(8), default=64, metavar="N", help="of training; default: %(default)s")
  add("--steps", type=_count(2), default=6, metavar="N", help="training steps, with the first one")
  add("--repeats", type=_count(1), default=3, metavar="R", help="runs a side; default: %(default)s")
  add("--video", type=pathlib.Path, metavar="FILE", help="of data; default: the packaged clip")
  add("--samples", type=_count(1), default=40, metavar="N", help="of data; default: %(default)s")
  add("--threads", type=_count(1), default=cpus, metavar="N", help="CPUs; default: all")
  add(
    "--long",
    nargs="?",
    choices=("small", "full"),
    const="small",
    help="our memory for 10 and for 200 frames (KEEP: 20 and 300), small or of the full size",
  )
  add("--out", type=pathlib.Path, default=pathlib.Path("bench_output"), metavar="DIR")
  args = parser.parse_args(arguments)
  if args.threads > cpus:
    parser.error(f"--threads {args.threads}: there are {cpus}")
  if args.keep_frames > compare_keep.LARGEST_CHUNK:
    parser.error(f"--keep-frames {args.keep_frames}: at most {compare_keep.LARGEST_CHUNK}")
  return args


def _count(least: int):
  def count(text: str) -> int:
    number = int(text)
    if number < least:
      raise argparse.ArgumentTypeError(f"{number}: at least {least}")
    return number

  return count


if __name__ == "__main__":
  cli.run(main)
