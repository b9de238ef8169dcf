"""Where a stage's sub-networks come from: earlier runs and converted files, by sub-network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from keep_jax.initialise import VQGAN
from keep_jax.model import KEEP, Params, param_shapes
from keep_jax.stages import OPPOSED, TRAINED, Options, auxiliary_shapes, flow_network
from keep_jax.weights import shipped_flow
from vsr_jax.checkpoint import read_meta, restore_params
from vsr_jax.errors import UserError
from vsr_jax.trees import differences, table

DISCRIMINATOR = "discriminator"


@dataclasses.dataclass(frozen=True)
class Source:
  """A path of `init_from`.

  Attributes:
    path: of a run or of a converted file.
    networks: the sub-networks to be taken from it; empty: all that it has.
  """

  path: str
  networks: tuple[str, ...] = ()


def parse(text: str) -> list[Source]:
  """Reads "PATH,flow+cft=PATH" as sources.

  Raises:
    UserError: a part without a path.
  """
  sources = []
  for part in filter(None, (part.strip() for part in text.split(","))):
    names, equals, path = part.rpartition("=")
    if not path or (equals and not names):
      raise UserError(f"init_from {part!r}: give a path, or NETWORK+NETWORK=PATH")
    sources.append(Source(path, tuple(names.split("+")) if names else ()))
  return sources


def load(
  sources: list[Source], model: KEEP, stage: str, options: Options
) -> tuple[dict[str, Any], dict[str, str]]:
  """Reads the sub-networks that a stage starts from.

  Args:
    sources: from `parse`; later ones win. RAFT-small's flow ships and needs none.
    model: the stage's model.
    stage: its name.
    options: what its loss needs.

  Returns:
    Params by sub-network, those of `stages.auxiliary_shapes` among them, and where each came from.

  Raises:
    UserError: a source cannot be read or does not fit, or a sub-network that the stage does not
      train comes from nowhere; the text names the command that makes it.
  """
  shapes = _wanted_shapes(model, stage, options)
  flow = flow_network(model, options)
  params: dict[str, Any] = {}
  origins: dict[str, str] = {}
  for source in sources:
    found = _read(source, shapes, stage)
    params |= found
    origins |= dict.fromkeys(found, source.path)
  if "encoder" in TRAINED[stage] and "encoder" not in params and "hq_encoder" in params:
    # Stage I trains hq_encoder; stage II starts both from it.
    params["encoder"] = params["hq_encoder"]
    origins["encoder"] = f"hq_encoder of {origins['hq_encoder']}"
  if "flow" in shapes and "flow" not in params:
    params |= (shipped := shipped_flow(flow))
    origins |= dict.fromkeys(shipped, "what ships with this package")
  _check_complete(params, shapes, stage, flow)
  return params, origins


def _wanted_shapes(model: KEEP, stage: str, options: Options) -> dict[str, Any]:
  shapes = dict(param_shapes(model))
  if stage == "vqgan":
    shapes = {name: shapes[name] for name in VQGAN}
  shapes = {name: tree for name, tree in shapes.items() if jax.tree.leaves(tree)}
  return shapes | auxiliary_shapes(stage, model, options)


def _read(source: Source, shapes: Mapping[str, Any], stage: str) -> dict[str, Any]:
  """The sub-networks that are wanted of one source."""
  tables = read_meta(source.path)["arrays"]
  there = {leaf.partition("/")[0] for item in ("params", "ema") for leaf in tables.get(item, {})}
  if unknown := [name for name in source.networks if name not in there]:
    raise UserError(
      f"{source.path}: has no {', '.join(unknown)}; it has {', '.join(sorted(there))}"
    )
  if there == {DISCRIMINATOR} and not source.networks:
    raise UserError(f"{source.path}: is a discriminator; give a run of stage I or a converted KEEP")
  # A flow network that a variant is without is passed over: all can be given the same start.
  known = {*shapes, "flow", *([DISCRIMINATOR] if stage in OPPOSED else [])}
  if unknown := [name for name in source.networks if name not in known]:
    raise UserError(f"init_from: stage {stage!r} has no {', '.join(unknown)}; leave it out")
  held = restore_params(source.path)
  wanted = [name for name in source.networks or shapes if name in {*shapes, DISCRIMINATOR}]
  found = {name: held[name] for name in wanted if name in held}
  for name, net in found.items():
    if name in shapes and (wrong := differences(table({name: shapes[name]}), table({name: net}))):
      raise UserError(
        f"{source.path}: its {name} does not fit the model: {wrong}; give the model's fields as "
        "they were there, or another start"
      )
  return found


def _check_complete(params: Params, shapes: Mapping[str, Any], stage: str, flow: str) -> None:
  missing = [name for name in shapes if name not in params and name not in TRAINED[stage]]
  if not missing:
    return
  add = f"flow=weights/{flow}"
  if missing == ["flow"]:
    raise UserError(
      f"init_from: the flow network {flow!r} has no weights; convert its authors' file, `python -m "
      f"keep_jax.convert FILE weights/{flow}`, and add {add}"
    )
  before = "prediction" if stage == "fusion" and set(missing) - {*VQGAN, "flow"} else "vqgan"
  start = f"RUN,{add}" if "flow" in missing and before == "vqgan" else "RUN"
  raise UserError(
    f"init_from: stage {stage!r} needs {', '.join(missing)}; run the stage before it, `python -m "
    f"keep_jax.train --config configs/keep/{before}.py --workdir RUN`, and give "
    f"--config.init_from {start}"
  )
