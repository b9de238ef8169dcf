"""Which metrics an evaluation has, and the networks that they need."""

from __future__ import annotations

import argparse
from typing import NamedTuple

from keep_jax import face_scores
from keep_jax.face_scores import METRICS, Networks
from vsr_jax import cli, lpips
from vsr_jax.faces import identity, mesh
from vsr_jax.flow import released
from vsr_jax.flow.estimators import ESTIMATORS
from vsr_jax.metrics import Metric

NAMES = tuple(metric.name for metric in METRICS)
_OF_FACES = ("ids", "akd", "tlme")  # measures for which a face has to be found


class Measuring(NamedTuple):
  """What an evaluation measures.

  Attributes:
    metrics: the columns.
    networks: what they need.
    names: the networks' names, for the record.
    note: a line on what is left out; "" if nothing is.
  """

  metrics: tuple[Metric, ...]
  networks: Networks
  names: dict[str, str]
  note: str


def add_arguments(parser: cli.Parser) -> None:
  """Adds the options for which metrics are computed, and with which networks."""
  add = parser.add_argument
  add(
    "--metrics",
    type=_names,
    metavar="A,B",
    help=f"of {', '.join(NAMES)}; default: all, without LPIPS where its weights are missing",
  )
  add("--lpips", choices=tuple(lpips.MIN_SIDE), default="vgg16", help="its network; default: vgg16")
  add("--lpips-weights", metavar="FILE", help="default: where vsr_jax.convert_lpips puts them")
  add(
    "--identity-weights",
    metavar="FILE",
    help="ArcFace's model_ir_se50.pth; default: MobileFace, which ships",
  )
  add("--flow-weights", metavar="FILE", help="of E_warp; default: RAFT-small's, which ship")


def _names(text: str) -> list[str]:
  """The argument A,B of --metrics."""
  names = text.split(",")
  if unknown := [name for name in names if name not in NAMES]:
    raise argparse.ArgumentTypeError(f"no metric {unknown[0]!r}; there are {', '.join(NAMES)}")
  return names


def load(args: argparse.Namespace) -> Measuring:
  """Loads the networks that the arguments of `add_arguments` ask for.

  Raises:
    UserError: weights are missing or damaged. Missing ones of LPIPS are told in the note instead,
      unless they or the metric were asked for.
  """
  metrics = [metric for metric in METRICS if metric.name in (args.metrics or NAMES)]
  note, names = "", {}
  asked = args.metrics or args.lpips_weights
  if not asked and not lpips.default_path(args.lpips).exists():
    note = f"LPIPS is left out, its weights are missing; get them by: {lpips.COMMAND}"
    metrics = [metric for metric in metrics if metric.measure != "lpips"]
  measures = {metric.measure for metric in metrics}
  lpips_params = identity_params = mesh_params = flow = None
  if "lpips" in measures:
    names["lpips"] = args.lpips
    lpips_params = lpips.load(args.lpips_weights, args.lpips)
  if "ids" in measures:
    identity_params = identity.load(args.identity_weights)
    (names["identity"],) = identity_params
  if measures & set(_OF_FACES):
    names["landmarks"] = "face mesh, 468 points"
    mesh_params = mesh.load()
  if "warping" in measures:
    names["flow"], flow_params = released.load(args.flow_weights)
    flow = ESTIMATORS[names["flow"]], flow_params
  networks = face_scores.make_networks(lpips_params, identity_params, mesh_params, flow)
  return Measuring(tuple(metrics), networks, names, note)


def describe(measuring: Measuring) -> list[str]:
  """Notes for below a table on what its columns are."""
  names, told = measuring.names, []
  if "lpips" in names:
    told.append(f"LPIPS by {names['lpips']}")
  if "identity" in names:
    told.append(f"IDS by {names['identity']}")
  if "landmarks" in names:
    told.append("AKD and TLME in pixels of an aligned face of 512")
  if "flow" in names:
    told.append(f"E_warp along the truth's flow by {names['flow']}")
  notes = ["Means over the frames of a clip, then over clips; docs/metrics.md defines the columns."]
  notes += [f"{'; '.join(told)}."] if told else []
  return [*notes, f"{measuring.note}."] if measuring.note else notes
