"""Worker: restores a clip of aligned faces with `keep_jax.streaming.Restorer`, as one process.

    python -m benchmarks.keep convert --checkpoint DIR [--model full]
    python -m benchmarks.keep time|stream|output|work|faces --checkpoint DIR [--frames 6] ...

`convert` writes the checkpoint that the others load. `time` is the measured run, within one window;
`stream` is a clip of any length, for its memory; `faces` is what surrounds the network: finding a
face in whole frames, aligning it and pasting it back.
The others are not timed: `output` writes a chunk in floating point, for comparison with the
reference's, and `work` counts operations.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import pathlib
import time
from fractions import Fraction
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import skimage.data

from benchmarks import workload
from benchmarks.restoration import (
  VERSIONS,
  compile_times,
  device_memory,
  device_name,
  product_peak,
)
from keep_jax.conversion import convert_released
from keep_jax.faces import find_faces, identity, restore_faces
from keep_jax.model import (
  KEEP,
  Params,
  calculate_gains,
  clip_flows,
  flow_between,
  flow_features,
  initial_state,
  observe,
  restore_clip,
  step,
)
from keep_jax.streaming import WINDOW, Restorer, load
from vsr_jax import cli, runtime
from vsr_jax.checkpoint import export_params
from vsr_jax.errors import UserError
from vsr_jax.faces.detector import make_detector
from vsr_jax.flops import count_flops
from vsr_jax.video import Frame

FACE_FRAMES = 12


def convert(args: argparse.Namespace) -> dict[str, Any]:
  """Converts the reference's deterministic weights, as released files are, to a checkpoint."""
  arch, params = convert_released(workload.keep_released(args.model).state, args.model)
  # A tree without leaves is left out, as checkpoints cannot hold it.
  params = {name: tree for name, tree in params.items() if jax.tree.leaves(tree)}
  export_params(args.checkpoint, params, {"model": dataclasses.asdict(arch)})
  return {}


def time_clip(args: argparse.Namespace) -> dict[str, Any]:
  """Restores chunks of 2 frames, of all frames and of 2 again: the last two count.

  The time of compiling within them, of gains for another number of frames, is subtracted.
  """
  compiling = compile_times()
  model, params = load_as_the_command(args.checkpoint)
  restorer = Restorer(model, params)
  frames = list(workload.keep_clip(args.frames, model.arch.image_size))
  ready = time.time() - args.started
  ends, compiled, restored = [ready], [sum(compiling)], []
  for chunk in (frames[:2], frames, frames[:2]):
    outputs = list(restorer.stream(chunk))
    ends.append(time.time() - args.started)
    compiled.append(sum(compiling))
    if chunk is frames:
      restored = outputs
  _, whole, two = (
    total - extra
    for total, extra in zip(workload.intervals(ends), workload.intervals(compiled), strict=True)
  )
  result = {
    "device": device_name(),
    "ready": ready,
    "first_chunk": ends[1],
    "seconds": workload.steady_seconds(whole, two, args.frames),
    "chunk": whole,
    "compile": sum(compiling),
    "memory": workload.peak_memory(),
    "device_memory": device_memory(),
  }
  if args.keep:
    np.savez(args.keep, frames=np.stack(restored))
  # Measured last, so that the product's arrays do not count as the restorer's memory.
  return result | {"product_peak": product_peak()}


def time_stream(args: argparse.Namespace) -> dict[str, Any]:
  """Restores a stream of frames one by one; its times, beyond the first window, and its memory."""
  model, params = load_as_the_command(args.checkpoint)
  ends = []
  for _ in Restorer(model, params).stream(workload.keep_clip(args.frames, model.arch.image_size)):
    ends.append(time.time() - args.started)
  return {
    "device": device_name(),
    "seconds": workload.intervals(ends[WINDOW:]),
    "memory": workload.peak_memory(),
    "device_memory": device_memory(),
  }


def load_as_the_command(checkpoint: pathlib.Path) -> tuple[KEEP, Params]:
  """Loads a model under the settings of `keep_jax.restore`."""
  runtime.enable_compilation_cache()
  runtime.keep_freed_memory()
  return load(checkpoint)


def time_faces(args: argparse.Namespace) -> dict[str, Any]:
  """Finds, aligns and pastes the face of a photograph that moves, 1280x720; seconds per frame."""
  del args
  photo = cv2.resize(skimage.data.astronaut()[:280, 60:400], (874, 720))
  frames = np.full((FACE_FRAMES, 720, 1280, 3), 128, np.uint8)
  for t, frame in enumerate(frames):
    frame[:, 10 * t : 10 * t + 874] = photo
  detect = make_detector()
  find_faces(frames[:1], detect)  # compiles
  began, seconds = time.perf_counter(), collections.defaultdict(float)
  faces, _ = find_faces(frames, detect)
  seconds["detect"] = time.perf_counter() - began
  stream = (Frame(image, Fraction(t, 25), t) for t, image in enumerate(frames))
  pasted = list(restore_faces(stream, faces, identity, seconds=seconds))
  if not all(result.restored for result in pasted):
    raise UserError("the face of the photograph was not found in every frame")
  return {"faces": {name: value / FACE_FRAMES for name, value in seconds.items()}}


def compute_output(args: argparse.Namespace) -> dict[str, Any]:
  """Writes the chunk's restored frames [t h w 3], not clipped, and logits [t tokens codes]."""
  model, params = load_as_the_command(args.checkpoint)
  frames = np.stack(list(workload.keep_clip(args.frames, model.arch.image_size)))
  frames = jnp.asarray(frames)[None].astype(jnp.float32) / 127.5 - 1

  # An accelerator's usual precision is lower; here the functions are compared, not the speed.
  with jax.default_matmul_precision("highest"):
    flows = jax.jit(functools.partial(clip_flows, model))(params, frames)
    restored, *_ = jax.jit(functools.partial(restore_clip, model))(params, frames, flows)
  np.savez(args.keep, output=np.asarray(restored.image[0]), logits=np.asarray(restored.logits[0]))
  return {}


def count_work(args: argparse.Namespace) -> dict[str, Any]:
  """Counts the FLOPs of a frame in a chunk."""
  parts = flops_of_parts(*load_as_the_command(args.checkpoint), args.frames)
  parts["gains"] /= args.frames
  return {"flops": sum(parts.values()), "flops_of": parts}


def flops_of_parts(model: KEEP, params: Params, frames: int) -> dict[str, float]:
  """The FLOPs of "encoder", "flow" and "step" of a frame, and "gains" of so many frames."""
  side = model.arch.image_size
  frame = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  encode, between = (functools.partial(part, model) for part in (flow_features, flow_between))
  features = jax.eval_shape(encode, params, frame)
  observation = jax.eval_shape(functools.partial(observe, model), params, frame)
  latents = jax.ShapeDtypeStruct((1, frames, *observation.latent.shape[1:]), jnp.float32)
  gains = jax.eval_shape(functools.partial(calculate_gains, model), params, latents)
  gain = jax.ShapeDtypeStruct((1, *gains.shape[2:]), jnp.float32)
  flow = jax.ShapeDtypeStruct((1, side, side, 2), jnp.float32)
  state = jax.eval_shape(lambda: initial_state(model, 1))
  return {
    "encoder": count_flops(functools.partial(observe, model), params, frame),
    "flow": count_flops(encode, params, frame) + count_flops(between, params, features, features),
    "gains": count_flops(functools.partial(calculate_gains, model), params, latents),
    "step": count_flops(functools.partial(step, model), params, state, observation, gain, flow),
  }


def main() -> None:
  """Runs the worker; see the module's docstring."""
  parser = workload.worker_parser("benchmarks.keep", __doc__)
  parser.add_argument("--checkpoint", type=pathlib.Path, required=True)
  args = parser.parse_args()
  workload.use_threads(args.threads)
  jobs = {"convert": convert, "time": time_clip, "stream": time_stream}
  jobs |= {"output": compute_output, "work": count_work, "faces": time_faces}
  workload.run_job(args, jobs, VERSIONS)


if __name__ == "__main__":
  cli.run(main)
