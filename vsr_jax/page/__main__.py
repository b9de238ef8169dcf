"""Command: serves a page on which clips are restored and compared before and after.

  python -m vsr_jax.page [--host 127.0.0.1] [--port 7860] [--weights SYSTEM=DIR]
    [--max-megabytes N] [--max-seconds S] [--max-pixels N] [--max-minutes M] [--memory GB]
    [--keep-minutes M]

SYSTEM is fmanet or keep. Needs gradio: `pip install -e ".[page]"`. docs/page.md tells more.
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

import argparse
import importlib.util
import os
import pathlib
import socket
import tempfile
import threading

from vsr_jax import cli, files, json_files
from vsr_jax.errors import UserError
from vsr_jax.page.jobs import SYSTEMS, Queue
from vsr_jax.page.uploads import Limits
from vsr_jax.page.visits import Visits

DEMO = "demonstration weights"
_LOCAL = ("127.0.0.1", "localhost", "::1")
_MOST_MEMORY = 0.75  # of the machine's, for a job
# What a checkpoint says of its model: FMA-Net's scale, or the side of KEEP's faces.
_SIZES = {"scale": "enlarges x{}", "image_size": "faces of {0}x{0}"}
_META = json_files.fields({"model": json_files.fields({}, {}, more=True)}, {}, more=True)


def main() -> None:
  """Runs the command; see the module's docstring and `--help`."""
  args = _parse()
  if importlib.util.find_spec("gradio") is None:
    raise UserError('gradio is missing; install the extra: pip install -e ".[page]"')
  _check_port(args.host, args.port)
  weights = {system: _offered_weights(system, args.weights) for system in SYSTEMS}
  folder = tempfile.gettempdir()
  files.remove_left(folder, "vsr_page")
  root = pathlib.Path(files.part_name(os.path.join(folder, "vsr_page")))
  root.mkdir(mode=0o700)
  try:
    with Queue(root, args.limits) as queue:
      _serve(args, root, Visits(queue, root, args.limits, weights))
  finally:
    files.remove(str(root))


def _serve(args: argparse.Namespace, root: pathlib.Path, visits: Visits) -> None:
  """Serves the page until a signal ends it."""
  os.environ["GRADIO_TEMP_DIR"] = str(root)  # gradio reads these when it is imported
  os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
  os.environ.setdefault("GRADIO_HEARTBEAT_INTERVAL", "5")  # seconds until a closed tab is noticed
  from vsr_jax.page import view

  examples = {system: _packaged(system, "demo_clip/input.mp4") for system in SYSTEMS}
  page = view.build(visits, root, examples)
  try:
    view.launch(page, args.host, args.port, args.limits)
    print(f"the page is at http://{args.host}:{args.port}; Ctrl-C ends it", flush=True)
    if args.host not in _LOCAL:
      print("note: it is open to all who reach this address; there is no password", flush=True)
    threading.Event().wait()
  finally:
    page.close(verbose=False)


def _check_port(host: str, port: int) -> None:
  """Raises `UserError` where nothing can be served."""
  try:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
      probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      probe.bind((host, port))
  except OSError as e:
    raise UserError(
      f"{host}:{port}: nothing can be served here ({e.strerror}); end what is, perhaps another "
      "page, or give another --port or --host"
    ) from e


def _packaged(system: str, path: str) -> pathlib.Path:
  """A file or folder that ships with a system, which is not imported."""
  found = importlib.util.find_spec(SYSTEMS[system])
  if found is None or not found.origin:
    raise UserError(f"{SYSTEMS[system]} is missing; install the whole project")
  return pathlib.Path(found.origin).parent / "assets" / path


def _offered_weights(system: str, given: list[tuple[str, str]]) -> dict[str, str | None]:
  """The checkpoints of a system by the name that visitors see; None is the one that ships."""
  shown = _described(DEMO, _packaged(system, "demo_weights"))
  offered: dict[str, str | None] = {shown: None}
  for name, folder in given:
    if name == system:
      path = os.path.abspath(folder)
      offered[_described(os.path.basename(path), pathlib.Path(path))] = path
  return offered


def _described(name: str, folder: pathlib.Path) -> str:
  """The name of weights with what their model is for, by the meta entries of the checkpoint."""
  if not (folder / "meta").is_dir():  # a run, with checkpoints in it
    from vsr_jax import checkpoint  # takes seconds

    folder = checkpoint.find_checkpoint(folder)
  try:
    model = json_files.read(folder / "meta" / "meta.json", _META)["model"]
  except (OSError, json_files.BadJson) as e:
    raise UserError(f"{folder}: no checkpoint that can be read; give another folder") from e
  told = [text.format(model[key]) for key, text in _SIZES.items() if type(model.get(key)) is int]
  return f"{name} ({', '.join(told)})" if told else name


def _weights(text: str) -> tuple[str, str]:
  system, separator, folder = text.partition("=")
  if system not in SYSTEMS or not folder:
    raise argparse.ArgumentTypeError(f"{text!r} is not of the form fmanet=DIR or keep=DIR")
  return system, folder


def _positive(text: str) -> float:
  try:
    value = float(text)
  except ValueError:
    value = 0
  if not 0 < value < 1e9:
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
  return value


def _parse() -> argparse.Namespace:
  parser = cli.Parser("vsr_jax.page", __doc__)
  add, usual = parser.add_argument, Limits()
  add("--host", default="127.0.0.1", help="the address to serve at; default: 127.0.0.1, local only")
  add("--port", type=int, default=7860, help="default: 7860")
  add(
    "--weights",
    type=_weights,
    action="append",
    default=[],
    metavar="SYSTEM=DIR",
    help="offer other weights, too: fmanet=DIR or keep=DIR; may be given several times",
  )
  for name, value, text in (
    ("megabytes", usual.megabytes, "an upload's size"),
    ("seconds", usual.seconds, "the length of what is restored at once"),
    ("pixels", usual.pixels, "in a frame of an upload"),
    ("minutes", usual.minutes, "how long restoring a clip may take"),
  ):
    told = f"{text}; default: {value:g}"
    add(f"--max-{name}", type=_positive, default=value, metavar="N", help=told)
  memory = _MOST_MEMORY * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
  told = f"gigabytes that restoring may take; default: {_MOST_MEMORY:g} of the machine's"
  add("--memory", type=_positive, default=memory, metavar="GB", help=told)
  told = f"minutes after which uploads and results are deleted; default: {usual.kept:g}"
  add("--keep-minutes", type=_positive, default=usual.kept, metavar="N", help=told)
  args = parser.parse_args()
  if not 0 < args.port < 65536:
    parser.error(f"--port {args.port}: must be 1 to 65535")
  args.limits = Limits(
    megabytes=args.max_megabytes,
    seconds=args.max_seconds,
    pixels=int(args.max_pixels),
    minutes=args.max_minutes,
    gigabytes=round(args.memory, 1),
    kept=args.keep_minutes,
  )
  return args


if __name__ == "__main__":
  cli.run(main)
