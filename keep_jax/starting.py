"""Where a stage's sub-networks come from: earlier runs and converted files, by sub-network."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from keep_jax.initialise import VQGAN
from keep_jax.model import KEEP, Params, param_shapes
from keep_jax.stages import TRAINED
from keep_jax.weights import shipped_flow
from vsr_jax.checkpoint import read_meta, restore_params
from vsr_jax.errors import UserError
from vsr_jax.trees import differences, table

DISCRIMINATOR = "discriminator"
# Stage I trains hq_encoder; stage II starts its encoder from it, too.
ALSO = {"hq_encoder": "encoder"}


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
  sources: list[Source], model: KEEP, stage: str, *, need_targets: bool
) -> tuple[dict[str, Any], dict[str, str]]:
  """Reads the sub-networks that a stage starts from.

  Args:
    sources: from `parse`; later ones win. RAFT-small's flow ships and needs none.
    model: the stage's model.
    stage: its name.
    need_targets: whether the stage needs stage I's encoder although the model does not.

  Returns:
    Params by sub-network, hq_encoder among them if it is needed, and where each came from.

  Raises:
    UserError: a source cannot be read or does not fit, or a sub-network that the stage does not
      train comes from nowhere; the text names the command that makes it.
  """
  shapes = _wanted_shapes(model, stage, need_targets)
  params: dict[str, Any] = {}
  origins: dict[str, str] = {}
  for source in sources:
    for name, net in _read(source, shapes, stage).items():
      params[name], origins[name] = net, source.path
      if name in ALSO and ALSO[name] in shapes and ALSO[name] not in source.networks:
        other = ALSO[name]
        if other not in params or origins[other] != source.path:
          params[other], origins[other] = net, f"{source.path} ({name})"
  if "flow" in shapes and "flow" not in params:
    params |= (shipped := shipped_flow(model.arch))
    origins |= dict.fromkeys(shipped, "what ships with this package")
  _check_complete(params, shapes, stage)
  return params, origins


def _wanted_shapes(model: KEEP, stage: str, need_targets: bool) -> dict[str, Any]:
  shapes = dict(param_shapes(model))
  if stage == "vqgan":
    shapes = {name: shapes[name] for name in VQGAN}
  elif need_targets:
    shapes["hq_encoder"] = shapes["encoder"]
  return {name: tree for name, tree in shapes.items() if jax.tree.leaves(tree)}


def _read(source: Source, shapes: Mapping[str, Any], stage: str) -> dict[str, Any]:
  """The wanted sub-networks of one source; the encoder as the last, if the source has one."""
  tables = read_meta(source.path)["arrays"]
  there = {leaf.partition("/")[0] for item in ("params", "ema") for leaf in tables.get(item, {})}
  if unknown := [name for name in source.networks if name not in there]:
    raise UserError(
      f"{source.path}: has no {', '.join(unknown)}; it has {', '.join(sorted(there))}"
    )
  if there == {DISCRIMINATOR}:
    raise UserError(f"{source.path}: is a discriminator; give a run of stage I or a converted KEEP")
  if source.networks:
    unknown = [name for name in source.networks if name not in {*shapes, DISCRIMINATOR}]
    if unknown:
      raise UserError(f"init_from: stage {stage!r} has no {', '.join(unknown)}")
  wanted = source.networks or tuple(name for name in (*shapes, "hq_encoder") if name in there)
  held = restore_params(source.path)
  found = {name: held[name] for name in wanted if name in shapes}
  for name, net in found.items():
    if wrong := differences(table({name: shapes[name]}), table({name: net})):
      raise UserError(f"{source.path}: its {name} does not fit the model: {wrong}")
  if DISCRIMINATOR in source.networks:
    found[DISCRIMINATOR] = held[DISCRIMINATOR]
  return found


def _check_complete(params: Params, shapes: Mapping[str, Any], stage: str) -> None:
  missing = [name for name in shapes if name not in params and name not in TRAINED[stage]]
  if not missing:
    return
  if missing == ["flow"]:
    raise UserError(
      "init_from: the flow network has no weights; convert them with `python -m keep_jax.convert "
      "gmflow_sintel.pth weights/gmflow` and add flow=weights/gmflow"
    )
  before = "--config configs/keep/vqgan.py"
  if stage == "fusion" and set(missing) - {*VQGAN, "flow"}:
    before = "--config configs/keep/prediction.py"
  raise UserError(
    f"init_from: stage {stage!r} needs {', '.join(missing)}; run the stage before it, `python -m "
    f"keep_jax.train {before} --workdir RUN`, and give --config.init_from RUN"
  )


def is_resumed(workdir: str) -> bool:
  """Whether a run's folder has a checkpoint to go on from."""
  steps = pathlib.Path(workdir, "checkpoints").glob("*")
  return any(path.name.isdecimal() for path in steps)
