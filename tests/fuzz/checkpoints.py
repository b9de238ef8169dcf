"""Damaged weights, foreign and our own, through the commands that read them."""

from __future__ import annotations

import ast
import dataclasses
import pathlib
import shutil
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator

import jax
import numpy as np

from fmanet_jax import convert, streaming
from fmanet_jax.model import FMANet, Params
from tests.fmanet_jax import golden
from tests.fuzz.mutate import mutate
from tests.fuzz.runner import DONE, Case, run_case
from tests.support.torch_writer import save_state_dict
from vsr_jax import torch_files

_LEGACY = pathlib.Path(__file__).parents[1] / "parity" / "torch_legacy.pt"

Make = Callable[[pathlib.Path, np.random.Generator], None]


def damaged_checkpoints(folder: pathlib.Path, count: int, seed: int) -> Iterator[Case]:
  """Cases of each kind: a zip, the pickle within it, the older format, a checkpoint of ours."""
  folder.mkdir(parents=True)
  whole = folder / "whole.pt"
  save_state_dict(whole, golden.state_dict("tiny"))
  ours = folder / "ours"
  outcome = run_case(Case("ours", work=lambda: convert.convert([str(whole)], str(ours))))
  assert outcome.kind == DONE, outcome.said
  shapes = folder / "shapes"
  outcome = run_case(Case("shapes", work=lambda: _keep_shapes(ours, shapes)))
  assert outcome.kind == DONE, outcome.said
  kinds: dict[str, tuple[Make, Callable[[pathlib.Path], None]]] = {
    "zip": (lambda path, rng: _file(path, whole.read_bytes(), rng), _convert),
    "pickle": (lambda path, rng: _pickle(path, whole, rng), _convert),
    "legacy": (lambda path, rng: _file(path, _LEGACY.read_bytes(), rng), _read),
    "folder": (
      lambda path, rng: _folder(path, ours, rng),
      lambda path: _load(path, shapes),
    ),
  }
  for kind, (make, work) in kinds.items():
    for i in range(count):
      rng = np.random.default_rng((seed, zlib.crc32(kind.encode()), i))
      path = folder / kind / str(i) / "in"
      yield Case(
        f"checkpoints {i}: {kind}",
        work=lambda path=path, work=work: work(path),
        check=lambda refused, path=path: _check(path, refused),
        before=lambda path=path, rng=rng, make=make: _prepare(path, rng, make),
      )


def _prepare(path: pathlib.Path, rng: np.random.Generator, make: Make) -> None:
  path.parent.mkdir(parents=True)
  make(path, rng)


def _file(path: pathlib.Path, data: bytes, rng: np.random.Generator) -> None:
  path.write_bytes(mutate(data, rng)[0])


def _pickle(path: pathlib.Path, whole: pathlib.Path, rng: np.random.Generator) -> None:
  """Damages the pickle alone, in a zip whose checksums are right."""
  with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
    for name in source.namelist():
      data = source.read(name)
      target.writestr(name, mutate(data, rng)[0] if name.endswith(".pkl") else data)


def _folder(path: pathlib.Path, whole: pathlib.Path, rng: np.random.Generator) -> None:
  """Damages one file of a checkpoint of ours, or takes it away."""
  shutil.copytree(whole, path)
  files = sorted(p for p in path.rglob("*") if p.is_file() and p.stat().st_size)
  chosen = files[rng.integers(len(files))]
  if rng.random() < 0.1:
    chosen.unlink()
  else:
    chosen.write_bytes(mutate(chosen.read_bytes(), rng)[0])


def _keep_shapes(checkpoint: pathlib.Path, path: pathlib.Path) -> None:
  """Traces a model once; that takes seconds, and every case would do it again."""
  model, params = streaming.load(checkpoint)
  shapes = jax.tree.map(lambda x: (x.shape, str(x.dtype)), params)
  path.write_text(repr((dataclasses.asdict(model.arch), shapes)))


def _load(path: pathlib.Path, kept: pathlib.Path) -> None:
  arch, shapes = ast.literal_eval(kept.read_text())
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(*x), shapes, is_leaf=lambda x: isinstance(x, tuple)
  )
  trace = streaming.param_shapes

  def param_shapes(model: FMANet) -> Params:
    return abstract if dataclasses.asdict(model.arch) == arch else trace(model)

  streaming.param_shapes = param_shapes  # in a process of its own
  streaming.load(path)


def _convert(path: pathlib.Path) -> None:
  sys.argv = ["convert", str(path), str(path.parent / "out")]
  convert.main()


def _read(path: pathlib.Path) -> None:
  torch_files.unwrap(torch_files.load(path), source=str(path))


def _check(path: pathlib.Path, refused: bool) -> None:
  names = {p.name for p in path.parent.iterdir()} - {"in"}
  assert not (refused and names), f"left behind: {names}"
  assert names <= {"out"}, names
