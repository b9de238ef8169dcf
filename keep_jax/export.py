"""Command: writes KEEP's programs and weights as one file that runs without this package.

  python -m keep_jax.export CHECKPOINT FILE [--platforms cpu,cuda,tpu] [--dtype bfloat16]

FILE is for aligned faces of the model's size; `python -m vsr_jax.run_exported FILE INPUT OUTPUT`
restores with it, as `keep_jax.restore --aligned` does. The programs take any number of faces, and
any length of a window. `keep_jax.extract` takes the weights alone out of a run.
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from keep_jax import streaming
from keep_jax.model import (
  KEEP,
  Observation,
  Params,
  State,
  calculate_gains,
  flow_between,
  flow_features,
  initial_state,
  observe,
  step,
  to_uint8,
)
from vsr_jax import cli
from vsr_jax.exported import command, programs


def main() -> None:
  """Runs the command; see the module's docstring and `--help`."""
  parser = cli.Parser("keep_jax.export", __doc__)
  command.add_arguments(parser)
  args = parser.parse_args()
  command.check_output(args.file)
  model, params = streaming.load(args.checkpoint, args.dtype)
  lowered = lower(model, params, args.platforms)
  numbers = {
    "size": model.arch.image_size,
    "window": streaming.WINDOW,
    "look_ahead": streaming.LOOK_AHEAD,
    "attend_first_frame": model.arch.attend_first_frame,
    "causal": model.arch.causal,
  }
  system = f"KEEP for faces of {model.arch.image_size}x{model.arch.image_size}"
  command.write(args, system, {"recursion": numbers}, lowered, params)


def lower(model: KEEP, params: Params, platforms: Sequence[str]) -> dict[str, export.Exported]:
  """Lowers the programs of streams of b faces, see `programs.lower` and `streaming.Restorer`.

  Args:
    model: the model.
    params: its sub-networks'.
    platforms: names of `programs.PLATFORMS`.

  Returns:
    "see": uint8 [b size size 3] -> the observation, latents [b h' w' c] first, and features for the
    flow. "flow": features, and those of the frames before -> [b size size 2]. "gains": latents
    [1 t h' w' c] of a window -> [1 t h' w' 1]. "step": state, observation, gains [b h' w' 1], flow
    -> the next state and uint8 [b size size 3].
  """

  def see(params: Params, frames: jax.Array) -> tuple[Observation, Any]:
    x = frames.astype(jnp.float32) / 127.5 - 1
    return observe(model, params, x), flow_features(model, params, x)

  def flow(params: Params, features: Any, before: Any) -> tuple[jax.Array]:
    return (flow_between(model, params, features, before),)

  def gains(params: Params, latents: jax.Array) -> tuple[jax.Array]:
    return (calculate_gains(model, params, latents),)

  def advance(
    params: Params, state: State, observation: Observation, gain: jax.Array, flow: jax.Array
  ) -> tuple[State, jax.Array]:
    state, restored = step(model, params, state, observation, gain, flow)
    return state, to_uint8(restored.image)

  b, t = (export.symbolic_shape(name)[0] for name in "bt")
  size = model.arch.image_size
  frames = jax.ShapeDtypeStruct((b, size, size, 3), np.uint8)
  observation, features = jax.eval_shape(see, params, frames)
  latent = observation.latent
  window = jax.ShapeDtypeStruct((1, t, *latent.shape[1:]), latent.dtype)
  (gain,) = jax.eval_shape(gains, params, window)
  gain = jax.ShapeDtypeStruct((b, *gain.shape[2:]), gain.dtype)
  state = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((b, *x.shape[1:]), x.dtype),
    jax.eval_shape(functools.partial(initial_state, model, 1)),
  )
  inputs = [state, observation, gain, *jax.eval_shape(flow, params, features, features)]
  return {
    "see": programs.lower(see, params, [frames], platforms),
    "flow": programs.lower(flow, params, [features, features], platforms),
    "gains": programs.lower(gains, params, [window], platforms),
    "step": programs.lower(advance, params, inputs, platforms),
  }


if __name__ == "__main__":
  cli.run(main)
