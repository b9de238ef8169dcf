"""Trains a stage of FMA-Net.

python -m fmanet_jax.train --config configs/fmanet/degradation.py --workdir RUN
    [--config.KEY=VALUE ...]
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from fmanet_jax import recipe, stages
from fmanet_jax.architecture import Architecture
from fmanet_jax.model import (
  FMANet,
  Params,
  degrade,
  init_params,
  learn_degradation,
  param_shapes,
  restore,
)
from vsr_jax import cli, errors, progress
from vsr_jax.checkpoint import has_checkpoint, read_meta, restore_params
from vsr_jax.configs.fmanet import base
from vsr_jax.data_prep import batching, blur_pipeline
from vsr_jax.data_prep.clip import BLUR_BICUBIC, SHARP, Clip
from vsr_jax.data_prep.opening import OpenedSet, open_clips
from vsr_jax.sharding import host_rows, make_mesh
from vsr_jax.sweeps.checks import Check, Scored
from vsr_jax.train import command
from vsr_jax.train import recipe as recipes
from vsr_jax.train.compile_only import Plan
from vsr_jax.train.loop import fit
from vsr_jax.train.schedules import step_schedule
from vsr_jax.train.stage import Stage

_EXAMPLE = "configs/fmanet/demo.py:joint"

TRAINED = {  # stage -> the networks it trains
  "degradation": ("net_d",),
  "joint": ("net_d", "net_r"),
  "end_to_end": ("net_d", "net_r"),
}


def main() -> None:
  """Reads the flags and trains."""
  command.run(
    "fmanet_jax.train", "Trains a stage of FMA-Net.", _EXAMPLE, base.defaults, train, make_plan
  )


def train(config: ConfigDict, workdir: str) -> None:
  """Trains a recipe to its end, resuming what is in the workdir.

  Args:
    config: as `configs.fmanet.base.defaults` describes it.
    workdir: the run's folder.

  Raises:
    UserError: the config, data or a checkpoint cannot be used.
  """
  began = time.monotonic()
  recipe.check(config, tuple(TRAINED))
  model = _model(config)
  arch, need_flow = model.arch, _needs_flow(config)
  clips, validation = _open_sets(config, arch, open_clips)
  evaluate = make_evaluate(model, config, validation) if config.data.validation else None
  mesh = make_mesh()
  dataset = _training_set(config, clips, need_flow, host_rows(mesh, config.data.batch))
  fingerprint = blur_pipeline.fingerprint(clips, batch_size=config.data.batch, seed=config.seed)
  with (
    cli.memory_errors(workdir, "lower data.batch, raise train.accumulate or set train.remat"),
    batching.BatchReader(dataset, workers=config.data.workers, fingerprint=fingerprint) as batches,
  ):
    state = fit(
      stage_from_config(model, config),
      lambda key: init_params(model, key),
      batches,
      workdir=workdir,
      mesh=mesh,
      init_from=_starting_params(config, model, workdir),
      best="psnr" if evaluate else None,
      evaluate=evaluate,
      **recipes.fit_options(config),
      began=began,
      meta={"model": dataclasses.asdict(arch), "config": config.to_dict()},
    )
  if jax.process_index() == 0:
    _print_summary(config, workdir, int(state.step))


def make_check(scored: Scored | None) -> Check:
  """Makes what checks recipes and data before a sweep trains anything; see `sweeps.checks.Check`.

  Args:
    scored: where the clips of the evaluation are; None: there are none.
  """
  opened = functools.cache(open_clips)

  def check(config: ConfigDict, starts: bool) -> tuple[Sequence[Clip], Sequence[Clip]]:
    recipe.check(config, tuple(TRAINED))
    model = _model(config)
    clips, _ = _open_sets(config, model.arch, opened)
    evaluation: Sequence[Clip] = ()
    if scored is not None:
      streams, frames = (SHARP, BLUR_BICUBIC), model.arch.frames
      found = opened(scored.path, split=scored.split, streams=streams, num_frames=frames)
      evaluation = found.clips
      _check_scale(evaluation, model.arch)
    if starts:
      _load_start(config, model)
    return clips, evaluation

  return check


def _open_sets(
  config: ConfigDict, arch: Architecture, open_clips: Callable[..., OpenedSet]
) -> tuple[Sequence[Clip], Sequence[Clip]]:
  """The clips of training and of validation, of the model's scale; those of one may be none."""
  need_flow = _needs_flow(config)
  clips = open_clips(config.data.root, num_frames=arch.frames, need_flow=need_flow).clips
  _check_scale(clips, arch)
  if not config.data.validation:
    return clips, ()
  split = config.data.validation_split
  found = open_clips(config.data.validation, split=split, num_frames=arch.frames)
  return clips, found.clips


def _check_scale(clips: Sequence[Clip], arch: Architecture) -> None:
  for clip in clips:
    if clip.scale != arch.scale:
      raise errors.UserError(
        f"clip {clip.name} has scale {clip.scale}, the model {arch.scale}; prepare the data with "
        f"--scale {arch.scale}"
      )


def make_plan(config: ConfigDict, devices: int) -> Plan:
  """What training a recipe would compile on so many devices.

  Raises:
    UserError: the config cannot be used on them.
  """
  recipe.check(config, tuple(TRAINED), devices)
  model, crop = _model(config), config.data.crop
  lead = config.data.batch, config.model.frames
  large = crop * config.model.scale
  shapes = {"blurry": (crop, crop, 3), "sharp": (large, large, 3), "sharp_lr": (crop, crop, 3)}
  batch = {name: jax.ShapeDtypeStruct((*lead, *x), jnp.uint8) for name, x in shapes.items()}
  if _needs_flow(config):
    batch["flow"] = jax.ShapeDtypeStruct((*lead, crop, crop, 2), jnp.float32)
  stage = stage_from_config(model, config)
  return Plan(stage, functools.partial(init_params, model), batch, {})


def _model(config: ConfigDict) -> FMANet:
  return FMANet(Architecture(**config.model), jnp.dtype(config.dtype), config.train.remat)


def _needs_flow(config: ConfigDict) -> bool:
  """Whether flow labels are used: image flow is predicted, and its loss has a weight."""
  return config.model.filtering == "flow_guided" and config.loss.flow > 0


def _print_summary(config: ConfigDict, workdir: str, step: int) -> None:
  """Prints what the finished run has saved, and the next command."""
  print(f"{workdir}: {step} steps of stage {config.stage!r} are done, checkpoint {step} is saved")
  if config.stage == "degradation":
    start = "--config.init_from", workdir, "--config.data.root", config.data.root
    progress.tell_next("fmanet_jax.train", "--config", "FILE", "--workdir", "DIR", *start)
  else:
    progress.tell_next("fmanet_jax.restore", "INPUT", "OUTPUT", "--checkpoint", workdir)


def stage_from_config(model: FMANet, config: ConfigDict) -> Stage:
  """The `Stage` of a config; the weights of L_D are multiplied by `loss.degradation` (lambda_6)."""
  rates = {net: step_schedule(**config.optim[net]) for net in TRAINED[config.stage]}
  weights = dict(config.loss)
  degradation_weight = weights.pop("degradation")
  if config.stage != "degradation":
    for name in ("recon", "hr_warp", "flow", "anchor_d"):
      weights[name] *= degradation_weight
  return stages.make_stage(config.stage, model, weights, rates)


def make_evaluate(
  model: FMANet, config: ConfigDict, clips: Sequence[Clip]
) -> Callable[[Mapping[str, Any], int], dict[str, float]]:
  """Makes `(params, step) -> {"psnr": dB}` on fixed crops; in stage 1 of Net^D's reconstruction."""
  size = min(config.data.batch, config.train.evaluate_windows)
  dataset = blur_pipeline.make_dataset(
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

  # Batches evenly spread over the shuffled windows. They are read anew for every evaluation: few.
  spread = np.linspace(0, len(dataset) - 1, min(count, len(dataset)))
  chosen = [int(i) for i in spread]
  for i in chosen:
    dataset[i]  # what cannot be read is told before training, not in its middle

  def evaluate(params: Mapping[str, Any], step: int) -> dict[str, float]:
    del step
    return {"psnr": float(np.mean([psnr(params, dataset[i]) for i in chosen]))}

  return evaluate


def _training_set(config: ConfigDict, clips: Sequence[Clip], flow: bool, rows: Sequence[int]):
  return blur_pipeline.make_dataset(
    clips,
    num_frames=config.model.frames,
    crop=config.data.crop,
    batch_size=config.data.batch,
    seed=config.seed,
    rows=rows,
    flow=flow,
  )


def _starting_params(config: ConfigDict, model: FMANet, workdir: str) -> Params | None:
  """What a run starts from, see `_load_start`; None for one that is resumed."""
  return None if has_checkpoint(workdir) else _load_start(config, model)


def _load_start(config: ConfigDict, model: FMANet) -> Params | None:
  """Params of `init_from` to start with: Net^D alone if it is a run of stage 1, otherwise both.

  None without `init_from`. Prints what each network starts from.
  """
  shapes = param_shapes(model)
  trained: tuple[str, ...] = ()
  if config.init_from:
    trained = TRAINED.get(read_meta(config.init_from).get("stage", ""), tuple(shapes))
  if jax.process_index() == 0:
    for net in TRAINED[config.stage]:
      print(f"{net}: from {config.init_from if net in trained else 'scratch'}")
  if not trained:
    return None
  return restore_params(config.init_from, {net: shapes[net] for net in trained})


if __name__ == "__main__":
  cli.run(main)
