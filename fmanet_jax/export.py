"""Command: writes FMA-Net's programs and weights as one file that runs without this package.

  python -m fmanet_jax.export CHECKPOINT FILE --height H --width W [--platforms cpu,cuda,tpu]
    [--dtype bfloat16]

FILE is for frames of W x H pixels; `python -m vsr_jax.run_exported FILE INPUT OUTPUT` restores
with it. Its size is fixed: how many strips of rows a window is made in depends on it, and so does
what of it is held in memory.
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import export

from fmanet_jax import streaming
from fmanet_jax.model import FMANet
from fmanet_jax.window import fold_kernels
from vsr_jax import cli
from vsr_jax.exported import command, programs

_LARGEST = 8192  # pixels of a side


def main() -> None:
  """Runs the command; see the module's docstring and `--help`."""
  parser = cli.Parser("fmanet_jax.export", __doc__)
  command.add_arguments(parser)
  for name in ("height", "width"):
    parser.add_argument(
      f"--{name}", type=int, required=True, metavar="PIXELS", help=f"the {name} of the input"
    )
  args = parser.parse_args()
  for name in ("height", "width"):
    if not 1 <= getattr(args, name) <= _LARGEST:
      parser.error(f"--{name} {getattr(args, name)}: must be 1 to {_LARGEST}")
  command.check_output(args.file)
  model, params = streaming.load(args.checkpoint, args.dtype)
  whole = params | {"folded": fold_kernels(model, params)}
  lowered = lower(model, whole, args.height, args.width, args.platforms)
  scale = model.arch.scale
  sizes = {"height": args.height, "width": args.width, "scale": scale}
  form = {"windows": sizes | {"radius": model.arch.frames // 2}}
  system = f"FMA-Net for frames of {args.width}x{args.height}, enlarged {scale} times"
  command.write(args, system, form, lowered, whole)


def lower(
  model: FMANet, params: dict[str, Any], height: int, width: int, platforms: Sequence[str]
) -> dict[str, export.Exported]:
  """Lowers the programs of a stream of frames, see `programs.lower` and `streaming.Restorer`.

  Args:
    model: the model.
    params: both networks', and as "folded" the result of `window.fold_kernels`.
    height: of the frames, in pixels.
    width: likewise.
    platforms: names of `programs.PLATFORMS`.

  Returns:
    "features": a frame, uint8 [1 h w 3] -> what windows need of it, and F^0, which only that window
    needs of which it is the centre. "window": the first of each of its frames, oldest first, and
    its centre's F^0 -> the restored centre frame, uint8 [1 sh sw 3].
  """

  def features(params: dict[str, Any], frame: jax.Array) -> tuple[Any, Any]:
    return streaming.encode_group(model, params, frame)

  def window(params: dict[str, Any], *held: Any) -> tuple[jax.Array]:
    *groups, f0 = held
    folded = params["folded"]
    return (streaming.restore_group(model, None, params, folded, tuple(groups), (f0,)),)

  frame = jax.ShapeDtypeStruct((1, height, width, 3), np.uint8)
  group, f0 = jax.eval_shape(features, params, frame)
  held = [group] * model.arch.frames
  return {
    "features": programs.lower(features, params, [frame], platforms),
    "window": programs.lower(window, params, [*held, f0], platforms),
  }


if __name__ == "__main__":
  cli.run(main)
