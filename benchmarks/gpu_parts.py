"""What `benchmarks.gpu` measures: precisions, sizes, and the parts in their order."""

from __future__ import annotations

import dataclasses
import importlib
import pathlib
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

TABLES = {
  "fmanet": "FMA-Net restores",
  "keep": "KEEP restores",
  "train": "Training steps",
}
KEPT = 3  # the first frames of each part, which are compared
RELEASED = "PyTorch"  # the row of the released code
ON_CPU = "float32 on CPU"
BASE = "float32"  # the row with which outputs are compared


class Precision(NamedTuple):
  """How convolutions and products are computed.

  Attributes:
    dtype: the model's compute type.
    products: `jax.default_matmul_precision`; "default" is TF32 where GPUs have it.
  """

  dtype: str
  products: str


PRECISIONS = {
  "float32": Precision("float32", "highest"),
  "tf32": Precision("float32", "default"),
  "bfloat16": Precision("bfloat16", "default"),
}


@dataclasses.dataclass(frozen=True)
class Preset:
  """Sizes.

  Attributes:
    configuration: what restores, "released" or that of the recipes "smoke".
    height: of FMA-Net's frames, in pixels.
    width: likewise.
    window: frames of KEEP's window, and of the released code's chunk.
    frames: timed frames of a part, at most.
    seconds: in which they are timed, at most.
    recipes: of training, by system: a config of `vsr_jax.configs`, perhaps with ":" and its stage.
    steps: of training, with the first one, which does not count.
    limit: seconds that a part may take.
  """

  configuration: str
  height: int
  width: int
  window: int
  frames: int
  seconds: float
  recipes: Mapping[str, str]
  steps: int
  limit: float


PRESETS = {
  "full": Preset(
    "released", 180, 320, 20, 100, 8.0,
    {"fmanet": "fmanet/joint", "keep": "keep/prediction"}, 8, 150.0,
  ),
  "small": Preset(
    "smoke", 32, 48, 6, 5, 2.0,
    {"fmanet": "fmanet/smoke:joint", "keep": "keep/smoke:prediction"}, 3, 120.0,
  ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Part:
  """A row of a table: one run of a worker.

  Attributes:
    table: one of `TABLES`.
    row: its name in the table.
    precision: one of `PRECISIONS`; None where the released code decides.
    module: of `benchmarks`, the worker.
    job: the worker's.
    options: the worker's.
    python: the interpreter.
    on_cpu: whether it computes on the CPU, beside the parts on the GPU.
  """

  table: str
  row: str
  precision: str | None
  module: str
  job: str
  options: Mapping[str, Any]
  python: str = sys.executable
  on_cpu: bool = False

  @property
  def name(self) -> str:
    return f"{self.table}: {self.row}"


def make_parts(
  sizes: Preset,
  gpu: bool,
  references: Mapping[str, pathlib.Path | None],
  python: str,
) -> list[Part]:
  """The parts in the order in which they run, the more important ones first.

  Args:
    sizes: one of `PRESETS`.
    gpu: whether there is one. A CPU has no TF32, is not compared with itself, trains in float32.
    references: checkouts of the released code by system, or None.
    python: the interpreter that has PyTorch.
  """
  parts = [*_restoring(sizes, "float32"), *_restoring(sizes, "bfloat16")]
  if gpu:
    parts += [*_restoring(sizes, "tf32"), *_restoring(sizes, "float32", on_cpu=True)]
  parts += _training(sizes, "tf32" if gpu else "float32")
  parts += _released(sizes, references, python)
  return parts + (_training(sizes, "bfloat16") if gpu else [])


def _restoring(sizes: Preset, precision: str, on_cpu: bool = False) -> list[Part]:
  """Both systems on frames in one precision; on the CPU only as many as are compared, and one."""
  options = {
    "configuration": sizes.configuration,
    "height": sizes.height,
    "width": sizes.width,
    "window": sizes.window,
    "frames": 1 if on_cpu else sizes.frames,
    "seconds": sizes.seconds,
    "precision": precision,
  }
  row = ON_CPU if on_cpu else precision
  return [
    Part(system, row, precision, "gpu_worker", system, options, on_cpu=on_cpu)
    for system in ("fmanet", "keep")
  ]


def _training(sizes: Preset, precision: str) -> list[Part]:
  options = {"steps": sizes.steps, "precision": precision}
  return [
    Part(
      "train", f"{recipe}, {precision}", precision, "gpu_worker", "train",
      options | {"recipe": recipe},
    )
    for recipe in sizes.recipes.values()
  ]  # fmt: skip


def _released(
  sizes: Preset, references: Mapping[str, pathlib.Path | None], python: str
) -> list[Part]:
  """The released code of each system, as far as it is given; it has no small configuration.

  Its KEEP is trained with small networks only, see `keep_stages`, so that there is no row for it.
  """
  parts: list[Part] = []
  if sizes.configuration != "released":
    return parts
  fmanet, keep = (
    {"folder": folder.resolve()} if (folder := references[system]) else None
    for system in ("fmanet", "keep")
  )
  if fmanet:
    clip = {"height": sizes.height, "width": sizes.width, "frames": max(4, sizes.frames // 10)}
    parts.append(Part("fmanet", RELEASED, None, "reference", "restoration", fmanet | clip, python))
  if keep:
    clip = {"frames": sizes.window}
    parts.append(Part("keep", RELEASED, None, "keep_reference", "time", keep | clip, python))
  if fmanet:
    recipe = sizes.recipes["fmanet"]
    data = importlib.import_module(f"vsr_jax.configs.{recipe.replace('/', '.')}").get_config().data
    batch = {"batch": data.batch, "crop": data.crop, "steps": sizes.steps}
    row = f"{recipe}, {RELEASED}"
    parts.append(Part("train", row, None, "reference", "training", fmanet | batch, python))
  return parts
