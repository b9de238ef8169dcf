"""Reports what restoring a frame costs on a TPU that is not there, by compiling for it.

    python -m benchmarks.aot [--topology v5e:2x4] [--height 180 --width 320] [--dtype bfloat16]
    python -m benchmarks.aot --training vqgan [--dtype bfloat16]

The first compiles FMA-Net's stream, the second a training step of a stage of KEEP at the full size.

Needs the `libtpu` package that belongs to the installed JAX (`pip install "jax[tpu]"`) but no
TPU. Programs for one device are compiled; their memory decides what fits.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from benchmarks.aot_training import SAMPLES, training_step
from fmanet_jax.architecture import Architecture
from fmanet_jax.model import FMANet, init_params
from fmanet_jax.window import encode_frames, fold_kernels, restore_window
from vsr_jax import cli
from vsr_jax.errors import UserError
from vsr_jax.flops import count_flops

ENVIRONMENT = {  # without these libtpu asks a cloud's metadata server for the topology
  "JAX_PLATFORMS": "cpu",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
}


def device_of(topology: str) -> jax.Device:
  """Returns a device of a TPU topology such as "v5e:2x4", to compile for; nothing runs on it.

  Raises:
    UserError: libtpu is missing or knows no such topology.
  """
  try:
    return topologies.get_topology_desc(topology, platform="tpu").devices[0]
  except (RuntimeError, ValueError) as e:
    reason = str(e).partition("\n")[0]
    raise UserError(
      f"--topology {topology}: {reason}; it takes libtpu (pip install 'jax[tpu]') and a topology "
      "such as v5e:2x4, to which the environment's TPU_ACCELERATOR_TYPE belongs"
    ) from None


def report(
  name: str, device: jax.Device, function: Any, *args: Any, donate: tuple[int, ...] = ()
) -> None:
  """Compiles a function of abstract arrays for the device and prints its cost.

  Args:
    name: the program's name.
    device: from `device_of`.
    function: what to compile.
    args: its arguments, trees of `jax.ShapeDtypeStruct`.
    donate: numbers of the arguments whose memory the outputs take over.
  """
  here = jax.sharding.SingleDeviceSharding(device)
  placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), args)
  program = jax.jit(function, donate_argnums=donate).lower(*placed).compile()
  memory, cost = program.memory_analysis(), program.cost_analysis() or {}
  print(f"{name} on {device.device_kind}")
  for what, size in (
    ("arguments", memory.argument_size_in_bytes),
    ("outputs", memory.output_size_in_bytes),
    ("temporaries", memory.temp_size_in_bytes),
    ("peak", memory.peak_memory_in_bytes),
  ):
    print(f"  {what:<20} {size / 1e6:12,.0f} MB")
  if "bytes accessed" in cost:  # counts a loop's body once
    print(f"  {'memory traffic':<20} {cost['bytes accessed'] / 1e9:12,.1f} GB")
  work = count_flops(function, *args, platform=device.platform)
  print(f"  {'work':<20} {work / 1e9:12,.1f} GFLOP")


def main() -> None:
  """Runs the command; see the module's docstring."""
  parser = cli.Parser("benchmarks.aot", __doc__)
  parser.add_argument("--topology", default="v5e:2x4", help="default: %(default)s")
  parser.add_argument("--height", type=int, default=180, help="of a frame; default: %(default)s")
  parser.add_argument("--width", type=int, default=320, help="default: %(default)s")
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
  parser.add_argument("--training", choices=SAMPLES, help="a stage of KEEP")
  args = parser.parse_args()
  for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  device = device_of(args.topology)
  if args.training:
    step, arguments = training_step(args.training, args.dtype)
    report(f"A step of {args.training}", device, step, *arguments, donate=(0,))
  else:
    _report_stream(device, args.dtype, args.height, args.width)


def _report_stream(device: jax.Device, dtype: str, height: int, width: int) -> None:
  """Reports FMA-Net's two programs of a stream."""
  model = FMANet(Architecture(), jnp.dtype(dtype))
  params = jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))
  frame = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
  encode, restore = (functools.partial(part, model) for part in (encode_frames, restore_window))
  report("Features of a frame", device, encode, params, frame)
  part = (frame, *jax.eval_shape(encode, params, frame))
  window = jax.tree.map(lambda x: (x,) * model.arch.frames, part)
  folded = jax.eval_shape(functools.partial(fold_kernels, model), params)
  report("A window", device, restore, params, folded, *window)


if __name__ == "__main__":
  cli.run(main)
