"""Trains a stage of KEEP.

python -m keep_jax.train --config configs/keep/vqgan.py --workdir RUN [--config.KEY=VALUE ...]
"""

from __future__ import annotations

if __name__ == "__main__":
  from vsr_jax import cli

  cli.begin()  # before the imports that take seconds

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from keep_jax import recipe, starting, validation
from keep_jax.architecture import Architecture
from keep_jax.initialise import start_params, vqgan_params
from keep_jax.model import KEEP
from keep_jax.stages import TRAINED, auxiliary_shapes, make_stage
from vsr_jax import cli, lpips, progress
from vsr_jax.checkpoint import has_checkpoint
from vsr_jax.configs.keep import base
from vsr_jax.data_prep import batching, face_pipeline
from vsr_jax.data_prep.clip import LOW_QUALITY, SHARP, Clip
from vsr_jax.data_prep.face_degrade import PRESETS, Degradation
from vsr_jax.data_prep.opening import open_clips
from vsr_jax.errors import UserError
from vsr_jax.sharding import host_rows, make_mesh, place_everywhere
from vsr_jax.sweeps.checks import Check, Scored
from vsr_jax.train import command
from vsr_jax.train import recipe as recipes
from vsr_jax.train.compile_only import Plan
from vsr_jax.train.loop import fit
from vsr_jax.train.report import Evaluate
from vsr_jax.train.stage import Stage

_EXAMPLE = "configs/keep/vqgan.py"

_NEXT = {"vqgan": "prediction", "prediction": "fusion"}  # the stage after a stage


def main() -> None:
  """Reads the flags and trains."""
  command.run(
    "keep_jax.train", "Trains a stage of KEEP.", _EXAMPLE, base.defaults, train, make_plan
  )


def train(config: ConfigDict, workdir: str) -> None:
  """Trains a recipe to its end, resuming what is in the workdir.

  Args:
    config: as `configs.keep.base.defaults` describes it.
    workdir: the run's folder.

  Raises:
    UserError: the config, data or a checkpoint cannot be used.
  """
  began = time.monotonic()
  recipe.check(config, tuple(PRESETS), LOW_QUALITY)
  model = _model(config)
  stage, mesh = stage_from_config(model, config), make_mesh()
  perceptual = place_everywhere(mesh, _load_lpips(config))
  init_from, auxiliary = _start(config, model, workdir)
  if perceptual is not None and recipe.uses_lpips(config):
    auxiliary["lpips"] = perceptual
  clips = open_clips(config.data.root, streams=(SHARP,), num_frames=_span(config)).clips
  evaluate = make_evaluate(config, model, mesh, perceptual) if config.data.validation else None
  with (
    cli.memory_errors(workdir, "lower data.batch, raise train.accumulate or set train.remat"),
    batching.BatchReader(
      training_set(config, clips, host_rows(mesh, config.data.batch)),
      workers=config.data.workers,
      fingerprint=_fingerprint(config, clips),
    ) as batches,
  ):
    state = fit(
      stage,
      initialiser(model, config),
      batches,
      workdir=workdir,
      mesh=mesh,
      init_from=init_from,
      auxiliary=auxiliary,
      best=config.train.best if evaluate else None,
      lowest=config.train.best == "lpips",
      evaluate=evaluate,
      **recipes.fit_options(config),
      began=began,
      meta={"model": dataclasses.asdict(model.arch), "config": config.to_dict()},
    )
  if jax.process_index() == 0:
    _print_summary(config, workdir, int(state.step))


def make_check(scored: Scored | None) -> Check:
  """Makes what checks recipes and data before a sweep trains anything; see `sweeps.checks.Check`.

  Args:
    scored: where the clips of the evaluation are; None: there are none.
  """
  opened = functools.cache(open_clips)
  perceptual = functools.cache(lpips.load)

  def check(config: ConfigDict, starts: bool) -> tuple[Sequence[Clip], Sequence[Clip]]:
    recipe.check(config, tuple(PRESETS), LOW_QUALITY)
    model = _model(config)
    if recipe.uses_lpips(config):
      perceptual(config.loss.perceptual_weights or None, config.loss.perceptual_network)
    clips = opened(config.data.root, streams=(SHARP,), num_frames=_span(config)).clips
    if config.data.validation:
      opened(config.data.validation, split=config.data.validation_split, streams=None)
    evaluation: Sequence[Clip] = ()
    if scored is not None:
      evaluation = opened(scored.path, split=scored.split, streams=None).clips
    if starts:
      sources = starting.parse(config.init_from)
      starting.load(sources, model, config.stage, recipe.options(config))
    return clips, evaluation

  return check


def make_plan(config: ConfigDict, devices: int) -> Plan:
  """What training a recipe would compile on so many devices.

  Raises:
    UserError: the config cannot be used on them.
  """
  recipe.check(config, tuple(PRESETS), LOW_QUALITY, devices)
  model, size = _model(config), config.model.image_size
  lead, sides = [config.data.batch], {"gt": size}
  if config.stage != "vqgan":
    lead.append(config.data.frames)
    sides["lq"] = size // PRESETS[config.data.degradation].scale
  batch = {name: jax.ShapeDtypeStruct((*lead, x, x, 3), jnp.uint8) for name, x in sides.items()}
  auxiliary = dict(auxiliary_shapes(config.stage, model, recipe.options(config)))
  if recipe.uses_lpips(config):
    auxiliary["lpips"] = lpips.template(config.loss.perceptual_network)
  return Plan(stage_from_config(model, config), initialiser(model, config), batch, auxiliary)


def _model(config: ConfigDict) -> KEEP:
  return KEEP(Architecture(**config.model), jnp.dtype(config.dtype), config.train.remat)


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


def training_set(
  config: ConfigDict, clips: Sequence[Clip], rows: Sequence[int]
) -> grain.MapDataset:
  """This host's rows of a config's batches: single images in stage I, clips in the others."""
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
      degradation=PRESETS[config.data.degradation],
      size=size,
    )
  return batching.batch(samples, config.data.batch, rows=rows)


def make_evaluate(
  config: ConfigDict, model: KEEP, mesh: Mesh, lpips_params: lpips.Params | None
) -> Evaluate:
  """The evaluation of the validation clips, `(params, step) -> {"psnr": dB, "lpips": ...}`.

  Args:
    config: a recipe with data.validation.
    model: the model.
    mesh: over whose devices the clips are shared out.
    lpips_params: from `lpips.load`; None leaves LPIPS out.

  Raises:
    UserError: the set has no frames, or none that are faces.
  """
  data, interval, size = config.data, config.train.evaluate_interval, config.model.image_size
  single = config.stage == "vqgan"
  low_quality: str | Degradation = data.validation_degradation
  if single:
    low_quality = SHARP  # stage I sees good frames only
  elif low_quality in PRESETS:
    low_quality = PRESETS[low_quality]
  streams = {SHARP, low_quality} if isinstance(low_quality, str) else {SHARP}
  clips = open_clips(data.validation, split=data.validation_split, streams=sorted(streams)).clips
  try:
    batches = face_pipeline.evaluation_batches(
      clips,
      low_quality=low_quality,
      batch_size=mesh.shape["data"],
      # No longer than the clips: frames that fill up a chunk cost as much as others.
      chunk=min(face_pipeline.CHUNK, max(-(-clip.length // interval) for clip in clips)),
      interval=interval,
      size=size,
      rows=host_rows(mesh, mesh.shape["data"]),
    )
    if single:
      batches = batches.map(lambda batch: {name: batch[name] for name in batch if name != "lq"})
    apply = (validation.reconstruction if single else validation.restoration)(model)
    return validation.make_validation(apply, batches, mesh, lpips_params)
  except UserError as e:
    raise UserError(f"{data.validation}: {e}") from e


def _span(config: ConfigDict) -> int:
  """The frames that a clip must have to be trained on."""
  if config.stage == "vqgan":
    return 1
  return min(config.data.intervals) * (config.data.frames - 1) + 1


def _fingerprint(config: ConfigDict, clips: Sequence[Clip]) -> int:
  named = ([clip.name, clip.length] for clip in clips)
  # Clips shorter than the span are not drawn from.
  return batching.fingerprint(*named, config.data.batch, config.seed, _span(config))


def _load_lpips(config: ConfigDict) -> dict[str, Any] | None:
  """LPIPS's params, for the loss and for validation, which does without where there are none.

  Raises:
    UserError: the loss or `train.best` needs them, or the recipe names them, and they are missing.
  """
  network, path = config.loss.perceptual_network, config.loss.perceptual_weights or None
  needed = recipe.uses_lpips(config)
  if config.data.validation:
    needed = needed or path is not None or config.train.best == "lpips"
    needed = needed or lpips.default_path(network).exists()
  return lpips.load(path, network) if needed else None


def _start(
  config: ConfigDict, model: KEEP, workdir: str
) -> tuple[Mapping[str, Any] | None, dict[str, Any]]:
  """Params to start from, None for a run that is resumed; and those that only the loss uses."""
  options = recipe.options(config)
  auxiliary = auxiliary_shapes(config.stage, model, options)
  resumed = has_checkpoint(workdir)
  if resumed and not auxiliary:
    return None, {}
  params, origins = starting.load(starting.parse(config.init_from), model, config.stage, options)
  only_loss = {name: params.pop(name) for name in auxiliary}
  if not resumed and jax.process_index() == 0:
    for name in dict.fromkeys((*origins, *TRAINED[config.stage])):
      print(f"{name}: from {origins.get(name, 'scratch')}")
  return None if resumed else params, only_loss


def _print_summary(config: ConfigDict, workdir: str, step: int) -> None:
  """Prints what the finished run has saved, and the next command."""
  print(f"{workdir}: {step} steps of stage {config.stage!r} are done, checkpoint {step} is saved")
  if config.stage in _NEXT:
    needs_flow = config.stage == "vqgan" and config.model.flow not in ("none", "raft_small")
    start = f"{workdir},flow=FLOW" if needs_flow else workdir
    options = "--config.init_from", start, "--config.data.root", config.data.root
    recipe_name = f"{_NEXT[config.stage].upper()}_RECIPE"
    progress.tell_next("keep_jax.train", "--config", recipe_name, "--workdir", "DIR", *options)
  if config.stage != "vqgan":
    progress.tell_next("keep_jax.restore", "INPUT", "OUTPUT", "--checkpoint", workdir)


if __name__ == "__main__":
  cli.run(main)
