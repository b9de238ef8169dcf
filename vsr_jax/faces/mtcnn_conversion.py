"""MTCNN's weights: the table for facenet-pytorch's files, and the file that ships."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vsr_jax import array_files, torch_files
from vsr_jax.conversion import Rule, Transform, convert, dense, with_bias
from vsr_jax.faces import mtcnn

ASSET = Path(__file__).parent / "assets" / "mtcnn.npz"
FILES = {"proposal": "pnet.pt", "refine": "rnet.pt", "output": "onet.pt"}


def load(path: str | Path | None = None) -> dict[str, Any]:
  """Reads MTCNN's parameters.

  Args:
    path: None for the weights that ship; else a folder with facenet-pytorch's pnet.pt, rnet.pt and
      onet.pt.

  Returns:
    the parameters for `mtcnn.detect`, on the default device.

  Raises:
    UserError: a file is missing, damaged or holds another model's weights.
  """
  if path is None:
    return array_files.load_params(ASSET, jax.eval_shape(mtcnn.init, jax.random.key(0)))
  params = from_state_dicts({n: torch_files.load(Path(path) / f) for n, f in FILES.items()}, path)
  return jax.tree.map(jax.numpy.asarray, params)


def from_state_dicts(
  states: Mapping[str, Mapping[str, np.ndarray]], source: str | Path = "state dicts"
) -> dict[str, Any]:
  """Converts the three networks' state dicts, named as in `FILES`."""
  state = {
    f"{name}.{key}": value
    for name, contents in states.items()
    for key, value in torch_files.unwrap(contents, source=f"{source}, {FILES[name]}").items()
  }
  template = jax.eval_shape(mtcnn.init, jax.random.key(0))
  return convert(state, rules(), template, str(source))


def rules() -> list[Rule]:
  """The table of pnet.pt, rnet.pt and onet.pt."""
  return [
    *with_bias(r"(\w+)\.conv([123])", r"\1/conv\2"),
    *with_bias(r"output\.conv4", "output/conv4"),
    Rule(r"(\w+)\.prelu(\d)\.weight", r"\1/prelu\2/slope"),
    *with_bias(r"proposal\.conv4_1", "proposal/score"),
    *with_bias(r"proposal\.conv4_2", "proposal/box"),
    *with_bias(r"refine\.dense4", "refine/dense", _after_flattening(64)),
    *with_bias(r"refine\.dense5_1", "refine/score", dense),
    *with_bias(r"refine\.dense5_2", "refine/box", dense),
    *with_bias(r"output\.dense5", "output/dense", _after_flattening(128)),
    *with_bias(r"output\.dense6_1", "output/score", dense),
    *with_bias(r"output\.dense6_2", "output/box", dense),
    *with_bias(r"output\.dense6_3", "output/landmarks", dense),
  ]


def _after_flattening(channels: int, side: int = 3) -> Transform:
  """A matrix over features in the order width, height, channels, to height, width, channels."""
  return functools.partial(_reordered, channels=channels, side=side)


def _reordered(x: np.ndarray, channels: int, side: int) -> np.ndarray:
  return x.reshape(-1, side, side, channels).transpose(2, 1, 3, 0).reshape(-1, len(x))
