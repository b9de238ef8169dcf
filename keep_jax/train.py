"""Trains a stage of KEEP.

python -m keep_jax.train --config configs/keep/vqgan.py --workdir RUN [--config.KEY=VALUE ...]
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import grain
import jax
import jax.numpy as jnp
from absl import logging
from ml_collections import ConfigDict

from keep_jax import recipe, starting
from keep_jax.architecture import Architecture
from keep_jax.initialise import start_params, vqgan_params
from keep_jax.model import KEEP
from keep_jax.stages import TRAINED, make_stage
from vsr_jax import cli, lpips, progress
from vsr_jax.configs.keep import base
from vsr_jax.data_prep import batching, face_pipeline
from vsr_jax.data_prep.clip import SHARP, Clip
from vsr_jax.data_prep.face_degrade import PRESETS
from vsr_jax.data_prep.opening import open_clips
from vsr_jax.train import command
from vsr_jax.train.loop import fit
from vsr_jax.train.stage import Stage

_EXAMPLE = "configs/keep/vqgan.py"

_NEXT = {"vqgan": "configs/keep/prediction.py", "prediction": "configs/keep/fusion.py"}


def main() -> None:
  """Reads the flags and trains."""
  command.run("keep_jax.train", "Trains a stage of KEEP.", _EXAMPLE, base.defaults, train)


def train(config: ConfigDict, workdir: str) -> None:
  """Trains a recipe to its end, resuming what is in the workdir.

  Args:
    config: as `configs.keep.base.defaults` describes it.
    workdir: the run's folder.

  Raises:
    UserError: the config, data or a checkpoint cannot be used.
  """
  recipe.check(config)
  arch = Architecture(**config.model)
  model = KEEP(arch, jnp.dtype(config.dtype), config.train.remat)
  auxiliary = _auxiliary(config)
  sources = starting.parse(config.init_from)
  # Without a Kalman filter the model has no encoder of good frames, which stage II's targets need.
  need_targets = arch.gain == "none" and config.stage in ("prediction", "end_to_end")
  resumed = starting.is_resumed(workdir)
  init_from: dict[str, Any] | None = None
  if not resumed or need_targets:
    init_from, origins = starting.load(sources, model, config.stage, need_targets=need_targets)
    if need_targets:
      auxiliary["hq_encoder"] = init_from.pop("hq_encoder")
    if resumed:
      init_from = None
    else:
      _tell_origins(origins, config.stage)
  clips = open_clips(
    config.data.root, streams=(SHARP,), num_frames=1 if config.stage == "vqgan" else _span(config)
  ).clips
  with (
    cli.memory_errors(workdir, "lower data.batch, raise train.accumulate or set train.remat"),
    batching.BatchReader(
      training_set(config, clips),
      workers=config.data.workers,
      fingerprint=_fingerprint(config, clips),
    ) as batches,
  ):
    state = fit(
      stage_from_config(model, config),
      initialiser(model, config),
      batches,
      workdir=workdir,
      steps=config.steps,
      seed=config.seed,
      init_from=init_from,
      auxiliary=auxiliary,
      log_every=config.train.log_every,
      image_every=config.train.image_every,
      checkpoint_every=config.train.checkpoint_every,
      keep=config.train.keep,
      accumulate=config.train.accumulate,
      ema_decay=config.train.ema_decay,
      clip_norm=config.train.clip_norm,
      fsdp_min_size=config.train.fsdp_min_size,
      meta={"model": dataclasses.asdict(arch), "config": config.to_dict()},
    )
  if jax.process_index() == 0:
    _print_summary(config, workdir, int(state.step))


def stage_from_config(model: KEEP, config: ConfigDict) -> Stage:
  """The `Stage` of a config."""
  return make_stage(
    config.stage,
    model,
    recipe.options(config),
    recipe.schedules(config),
    discriminator_size=(config.discriminator.width, config.discriminator.layers),
    discriminator_start=config.discriminator.start,
  )


def initialiser(model: KEEP, config: ConfigDict) -> Any:
  """`key -> params` of the sub-networks that the stage's run holds."""
  if config.stage == "vqgan":
    return functools.partial(vqgan_params, model)
  released = config.train.fusion_start == "as_released"
  return functools.partial(start_params, model, fusion_as_released=released)


def training_set(config: ConfigDict, clips: Sequence[Clip]) -> grain.MapDataset:
  """This host's batches of a config: single images in stage I, clips in the others."""
  size = config.model.image_size
  if config.stage == "vqgan":
    samples = face_pipeline.images(clips, seed=config.seed, size=size)
  else:
    samples = face_pipeline.clips(
      clips,
      seed=config.seed,
      num_frames=config.data.frames,
      intervals=config.data.intervals,
      reverse=config.data.reverse,
      degradation=PRESETS[config.data.degradation].at_size(size),
      size=size,
    )
  hosts = jax.process_count()
  return batching.batch(samples, config.data.batch // hosts, host=jax.process_index(), hosts=hosts)


def _span(config: ConfigDict) -> int:
  """The frames that the shortest training clip covers."""
  return min(config.data.intervals) * (config.data.frames - 1) + 1


def _fingerprint(config: ConfigDict, clips: Sequence[Clip]) -> int:
  named = ([clip.name, clip.length] for clip in clips)
  return batching.fingerprint(*named, config.data.batch, config.seed, config.stage == "vqgan")


def _auxiliary(config: ConfigDict) -> dict[str, Any]:
  """Params of the networks that only the loss uses.

  Raises:
    UserError: LPIPS has a weight, and its weights are missing.
  """
  if config.stage == "prediction" or not config.loss.perceptual:
    return {}
  path = config.loss.perceptual_weights or None
  return {"lpips": lpips.load(path, config.loss.perceptual_network)}


def _tell_origins(origins: dict[str, str], stage: str) -> None:
  """Logs where each sub-network comes from."""
  for name in dict.fromkeys((*origins, *TRAINED[stage])):
    logging.info("%s: from %s", name, origins.get(name, "scratch"))


def _print_summary(config: ConfigDict, workdir: str, step: int) -> None:
  """Prints what the finished run has saved, and the next command."""
  print(f"{workdir}: {step} steps of stage {config.stage!r} are done, checkpoint {step} is saved")
  if config.stage in _NEXT:
    start = "--config.init_from", workdir, "--config.data.root", config.data.root
    progress.tell_next(
      "keep_jax.train", "--config", _NEXT[config.stage], "--workdir", "DIR", *start
    )
  if config.stage != "vqgan":
    progress.tell_next("keep_jax.restore", "INPUT", "OUTPUT", "--checkpoint", workdir)


if __name__ == "__main__":
  cli.run(main)
