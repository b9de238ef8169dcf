"""Command: prepares REDS, VFHQ or GoPro, downloaded as released, for training.

  python -m vsr_jax.data_prep.build {reds,vfhq,gopro} --manual-dir DIR --data-dir DIR
    [--config NAME]

The folder of --manual-dir holds the downloads, zips or what was extracted from them; --instructions
lists them. The result is a TFDS data set of array_record files, one clip per record, with the
encoded frames unchanged. A run that was interrupted goes on with the next shard; clips that cannot
be used are left out and named. --beam makes shards in parallel, on all cores of this machine or,
with --beam-options "--runner=FlinkRunner ...", by any Beam runner whose workers see the same
folders. Needs TensorFlow and Beam: pip install -e ".[build]".
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

import argparse
import contextlib
import importlib
import io
import logging
import os
import pathlib
import shlex
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vsr_jax import cli, files, progress
from vsr_jax.data_prep import built
from vsr_jax.data_prep.opening import open_clips
from vsr_jax.errors import UserError

if TYPE_CHECKING:  # at run time it is imported once the arguments are checked
  from vsr_jax.data_prep.builders.clip_builder import ClipBuilder

DATASETS = ("reds", "vfhq", "gopro")
LOCAL = (
  "--runner=DirectRunner",
  "--direct_running_mode=multi_processing",
  "--default_sdk_harness_log_level=ERROR",
)


def main() -> None:
  """Runs the command; see the module's docstring and `--help`."""
  args = _parse()
  if args.instructions:
    print(
      importlib.import_module(f"vsr_jax.data_prep.builders.{args.dataset}").INSTRUCTIONS, end=""
    )
    return
  _check_folders(args)  # before imports that take a minute
  builder_class = _import_builder(args.dataset)
  names = list(builder_class.builder_configs)
  if args.config is not None and args.config not in names:
    raise UserError(f"{args.dataset} has no variant {args.config}, only {', '.join(names)}")
  config = args.config or names[0]
  folder = args.data_dir / args.dataset / config / str(builder_class.VERSION)
  if folder.is_dir():  # TFDS would read what is there, in whatever state it is
    print(f"{folder}: already built; remove it to build it again")
  else:
    builder = builder_class(config=config, data_dir=args.data_dir)
    builder.partial = args.partial
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints lines about downloads
      builder.download_and_prepare(download_config=_configure(args))
  summarize(folder)
  if args.dataset == "reds":
    progress.tell_next("vsr_jax.data_prep.flow_labels", folder)
  else:
    progress.tell_next(
      "vsr_jax.data_prep.show", f"{args.dataset}/{config}", "--data-dir", args.data_dir
    )


def _check_folders(args: argparse.Namespace) -> None:
  if not args.manual_dir.is_dir():
    raise UserError(
      f"{args.manual_dir}: no such folder of downloads; python -m vsr_jax.data_prep.build "
      f"{args.dataset} --instructions tells what to put there"
    )
  files.check_folder(args.data_dir)


def _parse() -> argparse.Namespace:
  parser = cli.Parser("vsr_jax.data_prep.build", __doc__)
  parser.add_argument("dataset", choices=DATASETS)
  parser.add_argument("--manual-dir", type=_folder, metavar="DIR", help="the downloads")
  parser.add_argument("--data-dir", type=_folder, metavar="DIR", help="where to write")
  parser.add_argument("--config", metavar="NAME", help="variant; the first unless given")
  parser.add_argument("--beam", action="store_true", help="make shards in parallel")
  parser.add_argument(
    "--beam-options",
    "--beam_options",
    metavar="TEXT",
    help="options of Beam, written --beam-options='...'; "
    f"default: {' '.join(LOCAL)} and a worker a core",
  )
  parser.add_argument(
    "--partial", action="store_true", help="use what is there of an incomplete download"
  )
  parser.add_argument("--instructions", action="store_true", help="tell what to download, and end")
  args = parser.parse_args()
  if not args.instructions and (args.manual_dir is None or args.data_dir is None):
    parser.error("--manual-dir and --data-dir are needed")
  if args.beam_options is not None and not args.beam:
    parser.error("--beam-options needs --beam")
  return args


def _folder(text: str) -> pathlib.Path:
  """A folder of a file system; ArrayRecord's writer knows no other."""
  if "://" in text:
    raise UserError(
      f"{text}: sets are built from and in folders of a file system; build there, and copy what"
      " was built, gcloud storage cp -r DIR gs://BUCKET, where training reads it"
    )
  return pathlib.Path(text)


def _import_builder(name: str) -> type[ClipBuilder]:
  try:
    with _quiet():
      module = importlib.import_module(f"vsr_jax.data_prep.builders.{name}.{name}_dataset_builder")
      importlib.import_module("tensorflow")  # TFDS imports it only later
  except ModuleNotFoundError as e:
    raise UserError(f'{e.name} is not installed; pip install -e ".[build]"') from e
  return module.Builder


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """A context that hides what TensorFlow's libraries print while they load; no setting does."""
  sys.stderr.flush()
  kept = os.dup(2)
  try:
    with open(os.devnull, "w") as nowhere:
      os.dup2(nowhere.fileno(), 2)
    yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)


def _configure(args: argparse.Namespace) -> Any:
  import tensorflow_datasets as tfds

  # Resolved, because a shard is identified by the paths of its files, and a rerun may spell them
  # in another way.
  config = {"manual_dir": args.manual_dir.resolve(), "try_download_gcs": False}
  if args.beam:
    try:
      from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
      from apache_beam.runners import create_runner
    except ModuleNotFoundError as e:
      raise UserError(f'{e.name} is not installed; pip install -e ".[build]"') from e

    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    words = [*LOCAL, f"--direct_num_workers={os.cpu_count()}"]
    if args.beam_options is not None:
      words = shlex.split(args.beam_options)
    config["beam_options"] = options = PipelineOptions(words)
    try:  # checked now, since later the error comes with Beam's long traceback
      create_runner(options.view_as(StandardOptions).runner or "DirectRunner")
    except (ValueError, ImportError) as e:
      raise UserError(f"--beam-options: {str(e).partition('. ')[0]}; name another --runner") from e
  return tfds.download.DownloadConfig(**config)


def summarize(folder: pathlib.Path) -> None:
  """Prints what a built data set holds and which clips were left out."""
  for split in built.splits(folder):
    opened = open_clips(folder, split=split, streams=None, warn=False)
    frames, size = sum(clip.length for clip in opened.clips), opened.bytes / 1e9
    print(
      f"{folder}: {split}: {len(opened.clips)} clips, {frames} frames, {size:.2f} GB; "
      f"{len(opened.left_out)} clips skipped"
    )
    for name, reason in opened.left_out.items():
      print(f"skipped {name}: {reason}")


if __name__ == "__main__":
  cli.run(main)
