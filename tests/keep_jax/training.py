"""A KEEP that is trained in a moment: small faces on disk, a small recipe, a quick start."""

from __future__ import annotations

import pathlib
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data
from ml_collections import ConfigDict

from keep_jax import stages, train
from keep_jax.model import KEEP, Params, param_shapes
from tests.data_prep.helpers import write_png
from tests.support.programs import random_params
from vsr_jax.configs.keep import smoke
from vsr_jax.data_prep import clip_set, meta_info
from vsr_jax.data_prep.face_streams import template

SIZE = 16
FACE = skimage.data.astronaut()[:224, 100:356]  # a face of about 110 pixels
SMALL = {
  "model.image_size": SIZE,
  "model.multiples": (1,),
  "data.frames": 2,
  "data.workers": 0,
  "loss.temporal_side": SIZE,
  "steps": 2,
  "train.checkpoint_every": 1,
  "train.evaluate_interval": 2,
}


def moving(length: int, height: int, width: int) -> list[np.ndarray]:
  """Frames of a face that moves a pixel a frame."""
  wide = cv2.resize(FACE, (width + length, height), interpolation=cv2.INTER_AREA)
  return [wide[:, i : i + width] for i in range(length)]


def write_faces(root: pathlib.Path, lengths: dict[str, int], shift: float = 0) -> None:
  """A clip set of whole frames with landmarks, by which the pipeline aligns them.

  Args:
    root: the folder.
    lengths: frames by clip.
    shift: how far the landmarks are from where they belong, in pixels.
  """
  entries = []
  for name, length in lengths.items():
    points = {}
    for i, frame in enumerate(moving(length, 24, 24)):
      write_png(root / "sharp" / name / f"{i:08d}.png", frame)
      points[f"{i:08d}.png"] = template(SIZE) + [4 - i + shift, 2]
    (root / meta_info.FOLDER).mkdir(exist_ok=True)
    (root / meta_info.FOLDER / f"{name}.txt").write_text(meta_info.format_clip(points))
    entries.append({"name": name, "frames": length})
  clip_set.write_index(root, entries)


def write_aligned(root: pathlib.Path, lengths: dict[str, int], size: int = SIZE) -> None:
  """A folder of clips of aligned faces."""
  for name, length in lengths.items():
    for i, frame in enumerate(moving(length, size, size)):
      write_png(root / name / f"{i:08d}.png", frame)


def write_sets(root: pathlib.Path) -> pathlib.Path:
  """A training set to be aligned in "train", and one for validation in "test"."""
  write_faces(root / "train", {"anna": 6, "ben": 5})
  write_aligned(root / "test", {"carl": 5, "dora": 3})
  return root


def make_recipe(stage: str, data: pathlib.Path, **changes: Any) -> ConfigDict:
  """The recipe of a stage on the sets that `write_sets` made in `data`, with changed fields."""
  config = smoke.get_config(stage)
  values = SMALL | {"data.root": str(data / "train"), "data.validation": str(data / "test")}
  if stage in stages.OPPOSED[1:]:
    values |= {"model.cft": (SIZE,), "model.cfa": (SIZE,)}
  config.update_from_flattened_dict(values | changes)
  return config


def quick_init(model: KEEP, *_, **__) -> Params:
  """Instead of the initialisers, which take longer to compile than a training step."""
  return random_params(param_shapes(model))


def start_quickly(patch: pytest.MonkeyPatch) -> None:
  """Lets the trainer start from `quick_init`."""

  def of_stage_1(model, key):
    return {name: quick_init(model)[name] for name in stages.TRAINED["vqgan"]}

  patch.setattr(train, "start_params", quick_init)
  patch.setattr(train, "vqgan_params", of_stage_1)
