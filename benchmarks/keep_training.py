"""Worker: times steps of a stage of KEEP as `keep_jax.train` runs them.

python -m benchmarks.keep_training vqgan|prediction|fusion [--steps 6] ...
"""

from __future__ import annotations

import argparse
import functools
from typing import Any

import jax
import numpy as np

from benchmarks import keep_stages, workload
from benchmarks.restoration import VERSIONS
from benchmarks.training import time_training
from keep_jax import conversion
from keep_jax.architecture import Architecture
from keep_jax.initialise import start_params, vqgan_params
from keep_jax.model import KEEP, param_shapes
from keep_jax.stages import Options, make_stage
from tests.support import keep_discriminators
from vsr_jax import cli
from vsr_jax.conversion import convert

# The released code names features by their sides at 512x512, where the small model's are smaller.
TEMPORAL_SIDE = 8


def time_stage(name: str, args: argparse.Namespace) -> dict[str, Any]:
  """Forward, backward and Adam of every network of a stage; seconds of each step, its losses."""
  task = keep_stages.task(name)
  arch, params = (_vqgan if name == "vqgan" else conversion.convert_released)(task.state)
  model = KEEP(arch)
  rates = {net: lambda _, rate=rate: rate for net, rate in keep_stages.RATES[name].items()}
  options = Options(
    keep_stages.WEIGHTS[name], adaptive=name == "vqgan", temporal_side=TEMPORAL_SIDE
  )
  width = keep_stages.WIDTHS.get(name, 1)
  stage = make_stage(name, model, options, rates, discriminator_size=(width, 4))
  variables = {}
  if stage.opponent is not None:
    init = stage.opponent.init
    table = keep_discriminators.video_discriminator_rules(width)
    if name == "vqgan":
      table = keep_discriminators.patch_discriminator_rules()
    net, own = jax.eval_shape(init, jax.random.key(0))
    found = convert(task.opponent, table, {"params": net, **own}, "the discriminator")
    params |= {stage.opponent.network: found.pop("params")}
    variables = {stage.opponent.network: found}
  init = functools.partial(vqgan_params if name == "vqgan" else start_params, model)
  keys = ("loss", "opponent_real", "opponent_fake")
  return time_training(stage, init, params, task.batch, args.steps, keys=keys, variables=variables)


def _vqgan(state: dict[str, np.ndarray]) -> tuple[Architecture, dict[str, Any]]:
  """Stage I's networks, whose tensors are named as those of the released stage."""
  arch = Architecture(
    image_size=64, width=32, multiples=(1, 2, 4), emb_dim=32, codes=128, cft=(), cfa=(),
    flow="none",
  )  # fmt: skip
  state = {
    f"hq_{key}" if key.startswith("encoder.") else key: value for key, value in state.items()
  }
  names = ("hq_encoder", "codebook", "generator")
  shapes = {name: param_shapes(KEEP(arch))[name] for name in names}
  table = [
    rule for rule in conversion.rules(arch) if rule.path and rule.path.partition("/")[0] in names
  ]
  return arch, convert(state, table, shapes, "stage I")


def main() -> None:
  """Runs the worker; see the module's docstring."""
  args = workload.worker_parser("benchmarks.keep_training", __doc__).parse_args()
  workload.use_threads(args.threads)
  jobs = {name: functools.partial(time_stage, name) for name in keep_stages.STAGES}
  workload.run_job(args, jobs, VERSIONS)


if __name__ == "__main__":
  cli.run(main)
