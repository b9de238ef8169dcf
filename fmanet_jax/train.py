"""Trains a stage of FMA-Net.

python -m fmanet_jax.train --config configs/fmanet/degradation.py --workdir RUN
    [--config.KEY VALUE ...]
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from data_prep import pipeline
from data_prep.clips import Clip
from data_prep.recorded import open_clips
from fmanet_jax import stages
from fmanet_jax.model import (
  Architecture,
  FMANet,
  Params,
  degrade,
  init_params,
  learn_degradation,
  param_shapes,
  restore,
)
from vsr_jax import errors
from vsr_jax.inference import enable_compilation_cache
from vsr_jax.memory import keep_freed_memory
from vsr_jax.train.checkpoint import read_meta, restore_params
from vsr_jax.train.loop import fit
from vsr_jax.train.stage import Stage

_CONFIG = config_flags.DEFINE_config_file("config", help_string="The recipe's file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; a run in it is resumed.")
_MULTIHOST = flags.DEFINE_bool("multihost", False, "One of several hosts, as on a pod.")

TRAINED = {
  "degradation": ("net_d",),
  "joint": ("net_d", "net_r"),
  "end_to_end": ("net_d", "net_r"),
}


def main() -> None:
  """Reads the flags and trains."""
  if {"-h", "--help"} & set(sys.argv[1:]):
    print(f"{__doc__}\n{flags.FLAGS.main_module_help()}")
    return
  try:
    _, *rest = flags.FLAGS(sys.argv)
    config = _CONFIG.value
    if config is not None:
      str(config.stage)  # a file that cannot be read is told only when its fields are
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as e:
    raise errors.UserError(f"{_reason(e)}; see the fields in configs/fmanet/base.py") from None
  if rest:
    raise errors.UserError(
      f"{rest[0]!r} belongs to no option; a truth value is set as --config.train.remat=True"
    )
  if config is None or _WORKDIR.value is None:
    raise errors.UserError("give --config FILE and --workdir DIR")
  if _MULTIHOST.value:
    jax.distributed.initialize()
  keep_freed_memory()
  enable_compilation_cache()  # a resumed run does not compile its step again
  train(config, _WORKDIR.value)


def _reason(error: Exception) -> str:
  """An error's text, without the traceback that config_flags puts before what a recipe raised."""
  text = str(error.args[0] if isinstance(error, KeyError) else error)  # str() would quote it
  lines = text.splitlines()
  if "Traceback" in text:
    lines = lines[1 + max(i for i, line in enumerate(lines) if line.startswith("  ")) :]
  return " ".join(lines)


def train(config: ConfigDict, workdir: str) -> None:
  """Trains a recipe to its end, resuming what is in the workdir.

  Args:
    config: as `configs.fmanet.base.defaults` describes it.
    workdir: the run's folder.

  Raises:
    UserError: the config, data or a checkpoint cannot be used.
  """
  _check(config)
  arch = Architecture(**config.model)
  model = FMANet(arch, jnp.dtype(config.dtype), config.train.remat)
  # Without, there is no flow to be taught, or it is not taught.
  need_flow = arch.filtering == "flow_guided" and config.loss.flow > 0
  clips = open_clips(config.data.root, num_frames=arch.frames, need_flow=need_flow)
  for clip in clips:
    if clip.scale != arch.scale:
      raise errors.UserError(
        f"clip {clip.name} has scale {clip.scale}, the model {arch.scale}; prepare the data with "
        f"--scale {arch.scale}"
      )
  evaluate = None
  if config.data.validation:
    found = open_clips(
      config.data.validation, split=config.data.validation_split, num_frames=arch.frames
    )
    evaluate = make_evaluate(model, config, found)
  dataset = _training_set(config, clips, need_flow)
  identity = pipeline.identity(clips, batch_size=config.data.batch, seed=config.seed)
  with pipeline.Batches(dataset, workers=config.data.workers, identity=identity) as batches:
    fit(
      make_stage(model, config),
      lambda key: init_params(model, key),
      batches,
      workdir=workdir,
      steps=config.steps,
      seed=config.seed,
      init_from=_starting_params(config, model, workdir),
      log_every=config.train.log_every,
      image_every=config.train.image_every,
      checkpoint_every=config.train.checkpoint_every,
      keep=config.train.keep,
      best="psnr" if evaluate else None,
      accumulate=config.train.accumulate,
      ema_decay=config.train.ema_decay,
      clip_norm=config.train.clip_norm,
      fsdp_min_size=config.train.fsdp_min_size,
      evaluate=evaluate,
      evaluate_every=config.train.evaluate_every,
      meta={"model": dataclasses.asdict(arch), "config": config.to_dict()},
    )


def _check(config: ConfigDict) -> None:
  """Raises `UserError` for a value that no run can have; `Architecture` checks its own."""
  for name, choices in (("stage", tuple(TRAINED)), ("dtype", ("float32", "bfloat16"))):
    if config[name] not in choices:
      raise errors.UserError(f"{name} = {config[name]!r}: must be one of {', '.join(choices)}")
  counts = {"data": ("crop", "batch"), "train": ("accumulate", "log_every", "evaluate_windows")}
  for group, names in counts.items():
    for name in names:
      if config[group][name] < 1:
        raise errors.UserError(f"{group}.{name} = {config[group][name]}: must be at least 1")
  if config.steps < 1:
    raise errors.UserError(f"steps = {config.steps}: must be at least 1")


def make_stage(model: FMANet, config: ConfigDict) -> Stage:
  """The stage that a recipe describes."""
  schedules = {net: stages.step_schedule(**config.optim[net]) for net in TRAINED[config.stage]}
  weights = dict(config.loss)
  of_degradation = weights.pop("degradation")
  if config.stage != "degradation":
    for name in ("recon", "hr_warp", "flow", "anchor_d"):
      weights[name] *= of_degradation
  return stages.make_stage(config.stage, model, weights, schedules)


def make_evaluate(
  model: FMANet, config: ConfigDict, clips: Sequence[Clip]
) -> Callable[[Params, int], dict[str, float]]:
  """Scores params on fixed crops: "psnr" of the output, in stage 1 of the reconstruction."""
  size = min(config.data.batch, config.train.evaluate_windows)
  dataset = pipeline.make_dataset(
    clips,
    num_frames=model.arch.frames,
    crop=config.data.crop,
    batch_size=size,
    seed=0,
    flow=False,
    epochs=1,
  )
  if not len(dataset):
    raise errors.UserError(
      f"{config.data.validation}: fewer windows than a batch of {size}; add clips or lower "
      "data.batch"
    )
  count = config.train.evaluate_windows // size
  joint = config.stage != "degradation"

  @jax.jit
  def psnr(params, batch):
    blurry, sharp = stages.to_unit(batch["blurry"]), stages.to_unit(batch["sharp"])
    degradation = learn_degradation(model, params, blurry)
    centre = model.arch.frames // 2
    if joint:
      got, truth = restore(model, params, blurry, degradation).output, sharp[:, centre]
    else:
      got, truth = degrade(model, degradation, sharp)[0], blurry[:, centre]
    error = jnp.square(jnp.clip(got, 0, 1) - truth).mean((1, 2, 3))
    return (-10 * jnp.log10(error)).mean()

  # Evenly spread over the shuffled windows; read again each time: they are few.
  spread = np.linspace(0, len(dataset) - 1, min(count, len(dataset)))
  chosen = [int(i) for i in spread]
  for i in chosen:
    dataset[i]  # what cannot be read is told before training, not in its middle

  def evaluate(params: Params, step: int) -> dict[str, float]:
    del step
    return {"psnr": float(np.mean([psnr(params, dataset[i]) for i in chosen]))}

  return evaluate


def _training_set(config: ConfigDict, clips: Sequence[Clip], flow: bool):
  hosts = jax.process_count()
  parts = jax.device_count() * config.train.accumulate
  if config.data.batch % parts:
    raise errors.UserError(
      f"data.batch = {config.data.batch}: must be a multiple of {parts}, the {jax.device_count()} "
      f"devices times train.accumulate = {config.train.accumulate}"
    )
  return pipeline.make_dataset(
    clips,
    num_frames=config.model.frames,
    crop=config.data.crop,
    batch_size=config.data.batch // hosts,
    seed=config.seed,
    host=jax.process_index(),
    hosts=hosts,
    flow=flow,
  )


def _starting_params(config: ConfigDict, model: FMANet, workdir: str) -> Params | None:
  """What the run or the weights to start from trained: after stage 1 Net^D, otherwise both.

  None for a run that goes on.
  """
  steps = pathlib.Path(workdir, "checkpoints").glob("*")
  if not config.init_from or any(path.name.isdecimal() for path in steps):
    return None
  shapes = param_shapes(model)
  trained = TRAINED.get(read_meta(config.init_from).get("stage"), tuple(shapes))
  return restore_params(config.init_from, {net: shapes[net] for net in trained})


if __name__ == "__main__":
  errors.run(main)
