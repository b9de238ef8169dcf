"""Reports what restoring costs on a TPU or GPU that is not there, by compiling for it.

    python -m benchmarks.aot fmanet [--topology v5e:1x1] [--height 180 --width 320] [--batch 1]
    python -m benchmarks.aot keep [--dtype bfloat16] [--only step] [--json FILE]

Compiled are the programs of a stream, for one of the topology's chips: of FMA-Net the features of
a frame and a window; of KEEP, at the full size of its faces, "see", "flow", "gains" and "step".
docs/pods.md explains topologies and what they need installed. The exit code is 3 where a program
does not fit. Training steps: `python -m fmanet_jax.train --compile_only`.
"""

from __future__ import annotations

import functools
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fmanet_jax.architecture import Architecture
from fmanet_jax.model import FMANet
from fmanet_jax.model import param_shapes as fmanet_shapes
from fmanet_jax.window import encode_frames, fold_kernels, restore_window
from keep_jax import architecture, streaming
from keep_jax.model import KEEP, initial_state
from keep_jax.model import param_shapes as keep_shapes
from vsr_jax import cli, files, runtime
from vsr_jax.chips import Chip
from vsr_jax.compile_report import Report, examine
from vsr_jax.topology import devices_of
from vsr_jax.train.compile_only import DOES_NOT_FIT

Program = tuple[Callable[..., Any], tuple[Any, ...]]  # a function, and its abstract arguments


def fmanet_programs(dtype: str, batch: int, height: int, width: int) -> dict[str, Program]:
  """FMA-Net's programs: "features" of b frames [b h w 3], and the "window" of b clips.

  Args:
    dtype: of convolutions and products.
    batch: b.
    height: of a frame, in pixels.
    width: likewise.
  """
  model = FMANet(Architecture(), jnp.dtype(dtype))
  params = fmanet_shapes(model)
  frame = jax.ShapeDtypeStruct((batch, height, width, 3), jnp.float32)
  encode, restore = (functools.partial(part, model) for part in (encode_frames, restore_window))
  part = (frame, *jax.eval_shape(encode, params, frame))
  window = jax.tree.map(lambda x: (x,) * model.arch.frames, part)
  folded = jax.eval_shape(functools.partial(fold_kernels, model), params)
  return {"features": (encode, (params, frame)), "window": (restore, (params, folded, *window))}


def keep_programs(dtype: str, batch: int) -> dict[str, Program]:
  """KEEP's programs for b faces; "gains" are those of one face's window.

  Args:
    dtype: of convolutions and products.
    batch: b.
  """
  model = KEEP(architecture.Architecture(), jnp.dtype(dtype))
  params, size = keep_shapes(model), model.arch.image_size
  frames = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)
  see = functools.partial(streaming._observe_faces, model)
  flow = functools.partial(streaming._flows, model)
  gains = functools.partial(streaming._gains_of_window, model)
  step = functools.partial(streaming._restore_faces, model, 1.0)
  observations, features = jax.eval_shape(see, params, frames)
  latents = [observations[0].latent] * streaming.WINDOW
  gain = jax.eval_shape(gains, params, latents)[0]
  flows = jax.eval_shape(flow, params, features, features)
  states = (jax.eval_shape(functools.partial(initial_state, model, 1)),) * batch
  inputs = [(seen, gain, moved) for seen, moved in zip(observations, flows, strict=True)]
  return {
    "see": (see, (params, frames)),
    "flow": (flow, (params, features, features)),
    "gains": (gains, (params, latents)),
    "step": (step, (params, states, inputs)),
  }


def report(program: Program, device: jax.Device, chip: Chip, dtype: str) -> Report:
  """Compiles a program for a device that need not be there."""
  function, args = program
  here = jax.sharding.SingleDeviceSharding(device)
  placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), args)
  return examine(jax.jit(function).trace(*placed), chip, 1, dtype)


def main() -> None:
  """Runs the command; see the module's docstring."""
  parser = cli.Parser("benchmarks.aot", __doc__)
  parser.add_argument("system", choices=("fmanet", "keep"))
  parser.add_argument("--topology", default="v5e:1x1", help="default: %(default)s")
  parser.add_argument("--height", type=int, default=180, help="of a frame; default: %(default)s")
  parser.add_argument("--width", type=int, default=320, help="default: %(default)s")
  parser.add_argument("--batch", type=int, default=1, help="frames or faces; default: %(default)s")
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
  parser.add_argument("--only", help="one program, such as window or step")
  parser.add_argument("--json", help="a file for the reports")
  args = parser.parse_args()
  if args.batch < 1:
    parser.error(f"--batch {args.batch}: must be at least 1")
  runtime.compile_without_devices()
  (device, *_), chip = devices_of(args.topology)
  if args.system == "fmanet":
    programs = fmanet_programs(args.dtype, args.batch, args.height, args.width)
  else:
    programs = keep_programs(args.dtype, args.batch)
  if args.only and args.only not in programs:
    parser.error(f"--only {args.only}: must be one of {', '.join(programs)}")
  if args.json:
    files.check_place(args.json)
  reports = {}
  for name in [args.only] if args.only else programs:
    reports[name] = report(programs[name], device, chip, args.dtype)
    print(f"{name} of {args.system}, batch {args.batch}, {args.dtype},", reports[name].to_text())
  if args.json:
    told = {name: x.to_json() for name, x in reports.items()}
    files.write_whole(pathlib.Path(args.json), json.dumps(told, indent=2, allow_nan=False) + "\n")
  if not all(x.fits for x in reports.values()):
    sys.exit(DOES_NOT_FIT)


if __name__ == "__main__":
  cli.run(main)
