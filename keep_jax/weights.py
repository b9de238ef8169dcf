"""A model with its weights, from a checkpoint or from the demonstration weights that ship."""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp

from keep_jax.architecture import EARLIER_NAMES, Architecture, FlowName
from keep_jax.model import KEEP, Params, param_shapes
from vsr_jax import paths
from vsr_jax.architecture import from_entries
from vsr_jax.checkpoint import read_meta, restore_params
from vsr_jax.errors import UserError
from vsr_jax.flow import raft_conversion
from vsr_jax.memory import release_freed_memory

DEMO_WEIGHTS = pathlib.Path(__file__).parent / "assets" / "demo_weights"


def load(
  checkpoint: str | pathlib.Path | None = None, dtype: str = "float32"
) -> tuple[KEEP, Params]:
  """Loads a model and its parameters for restoring.

  Args:
    checkpoint: a run of stage II or III, a checkpoint of one, or what `keep_jax.convert` or
      `keep_jax.extract` wrote; None for the demonstration weights that ship with the package.
    dtype: compute type, "float32" or "bfloat16".

  Returns:
    The model and its params, float32.

  Raises:
    UserError: there is no such checkpoint, or it is damaged, not of a KEEP, or a part of one.
  """
  if checkpoint is None:
    checkpoint = DEMO_WEIGHTS
    if not checkpoint.is_dir():
      raise UserError(
        f"{checkpoint}: KEEP's demonstration weights are missing; train them (make demo-weights), "
        "convert the released file with keep_jax.convert and name it with --checkpoint, or try "
        "the way without a network: --no-network"
      )
  if not paths.is_folder(checkpoint):
    raise UserError(
      f"{checkpoint}: no such folder; give a run's folder, or make one of the released weights "
      "with `python -m keep_jax.convert KEEP-b76feb75.pth DIR`"
    )
  meta = read_meta(checkpoint)
  if meta.get("stage") == "vqgan":
    raise UserError(
      f"{checkpoint}: of stage I, which restores no video; give a run of stage II or III"
    )
  remedy = (
    "not a checkpoint of KEEP; give a run of stage II or III or the output of keep_jax.convert"
  )
  # A checkpoint of GMFlow alone has "model": null; the networks it lacks are listed below.
  entries = {} if meta.get("model", "") is None else meta.get("model")
  arch = from_entries(Architecture, entries, str(checkpoint), remedy, EARLIER_NAMES)
  model = KEEP(arch, jnp.dtype(dtype))
  shapes = param_shapes(model)
  full = {name: tree for name, tree in shapes.items() if jax.tree.leaves(tree)}
  held = {leaf.partition("/")[0] for leaf in meta["arrays"]["params"]}
  shipped = shipped_flow(arch.flow) if "flow" in full.keys() - held else {}
  if missing := full.keys() - held - shipped.keys():
    raise UserError(
      f"{checkpoint}: a part of a KEEP, without {', '.join(sorted(missing))}; give a run of stage "
      "II or III, or convert one of KEEP's own files"
    )
  stored = {name: tree for name, tree in full.items() if name not in shipped}
  params = {name: {} for name in shapes} | restore_params(checkpoint, stored) | shipped
  release_freed_memory()  # what reading took
  return model, params


def shipped_flow(flow: FlowName) -> Params:
  """The flow network's params that every copy of this package has: {"flow": RAFT-small's}.

  Extracted weights leave them out, and training takes them where it is given none. Empty for
  another flow network.
  """
  if flow != "raft_small":
    return {}
  return {"flow": raft_conversion.load()[1]}
