"""The network that enlarges what is around the faces.

Lanczos and Real-ESRGAN are here. Others come from packages that offer an `Enlarger` as an entry
point of the group "vsr_jax.enlargers", under the name by which the user asks for it: as "fmanet"
FMA-Net, which this package knows nothing of.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from importlib import metadata

import numpy as np

from vsr_jax import cli
from vsr_jax.enlarge import realesrgan
from vsr_jax.enlarge.enlarger import Enlarger, enlarge_frames, fitting_tile
from vsr_jax.errors import UserError
from vsr_jax.faces import paste
from vsr_jax.frames import Frame

LANCZOS, REAL_ESRGAN = "lanczos", "realesrgan"
_GROUP = "vsr_jax.enlargers"
_DENOISE = 0.5  # the authors' default
_OPTIONS = ("background_weights", "background_denoise", "background_tile")


def add_arguments(parser: cli.Parser) -> None:
  """Adds the options for what is shown around the faces."""
  add = parser.add_argument
  add("--background", metavar="VIDEO", help="what to paste into: the whole clip, enlarged")
  add(
    "--background-model",
    choices=(LANCZOS, REAL_ESRGAN, *sorted(metadata.entry_points(group=_GROUP).names)),
    default=LANCZOS,
    help="what enlarges the frames around the faces: a filter, the default; or a network, of which "
    "realesrgan and fmanet come with their weights",
  )
  add("--background-weights", metavar="PATH", help="other weights of the background's network")
  add(
    "--background-denoise",
    type=float,
    metavar="D",
    help="of realesrgan: from 0, which leaves noise in the frame, to 1, which removes it; "
    f"default: {_DENOISE:g}",
  )
  add(
    "--background-tile",
    type=int,
    metavar="N",
    help="enlarge by tiles of N x N input pixels; default: only if whole frames do not fit",
  )


def check_arguments(parser: cli.Parser, args: argparse.Namespace) -> None:
  """Raises `UserError` for values out of range and options that exclude each other."""
  model, denoise = args.background_model, args.background_denoise
  if args.background and model != LANCZOS:
    parser.error("--background is enlarged already; leave out --background-model")
  for name in _OPTIONS:
    if model == LANCZOS and getattr(args, name) is not None:
      parser.error(f"--{name.replace('_', '-')} is for a network; name one by --background-model")
  if denoise is None:
    return
  if model != REAL_ESRGAN or args.background_weights:
    parser.error("--background-denoise is for the weights of realesrgan that ship")
  if not 0 <= denoise <= 1:
    parser.error(f"--background-denoise {denoise:g}: must be 0 to 1")


def open_enlarger(args: argparse.Namespace) -> Enlarger | None:
  """Loads the network that the command line names; None for Lanczos.

  Raises:
    UserError: its weights are missing, damaged or of another network, or the tiles are too small.
  """
  if args.background_model == LANCZOS:
    return None
  if args.background_model == REAL_ESRGAN:
    denoise = _DENOISE if args.background_denoise is None else args.background_denoise
    enlarger = realesrgan.open_enlarger(args.background_weights, args.dtype, denoise=denoise)
  else:
    offered = metadata.entry_points(group=_GROUP)[args.background_model]
    enlarger = offered.load()(args.background_weights, args.dtype)
  tile = args.background_tile
  if tile is not None and tile <= enlarger.overlap:
    overlap = enlarger.overlap
    raise UserError(f"--background-tile {tile}: must be above the overlap of {overlap} pixels")
  return enlarger


def enlarged_images(
  enlarger: Enlarger, frames: Iterable[Frame], size: tuple[int, int], tile: int | None
) -> Iterator[np.ndarray]:
  """Enlarges a clip, by tiles where whole frames do not fit the memory, which is told.

  Args:
    enlarger: the network.
    frames: those to enlarge, and the context that `enlarger` asks for.
    size: the frames' height and width, in pixels.
    tile: side of the tiles; None: that is decided here.

  Returns:
    uint8 RGB [s*h s*w 3], one a frame, without those of the context; of grey frames in grey.

  Raises:
    UserError: there is no room even for a small tile.
  """
  if tile is None:
    tile = fitting_tile(enlarger, *size)
    if tile is not None:
      print(f"note: whole frames do not fit the memory; enlarging by tiles of {tile} pixels")
  return (
    _as_grey_as(frame) for frame in enlarge_frames(enlarger, frames, tile) if not frame.is_context
  )


def _as_grey_as(frame: Frame) -> np.ndarray:
  """The image of an enlarged frame, without colour where the frame that it was made of has none."""
  assert frame.restored_from is not None  # set in every enlarged `Frame`
  return paste.to_grey(frame.image) if paste.is_grey(frame.restored_from) else frame.image
