"""Damaged data sets: their indexes, labels, frames, and the zips that releases come in."""

from __future__ import annotations

import contextlib
import json
import pathlib
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.data_prep.helpers import texture, write_clip_set, write_flow, write_png
from tests.fuzz.mutate import mutate
from tests.fuzz.runner import DONE, Case, run_case
from vsr_jax.data_prep import clip_set, flow_store, folders
from vsr_jax.data_prep.builders import reading, releases
from vsr_jax.data_prep.clip import BLUR_BICUBIC, check_frames
from vsr_jax.data_prep.opening import open_clips

_FRAMES = 3
_KEPT = b"not to be touched"

# What no index should hold where it holds something else.
_ODD_VALUES = (
  None,
  True,
  -1,
  0,
  10**30,
  1e308,
  float("nan"),
  float("inf"),
  "",
  "..",
  "../../kept.array_record",
  "/",
  "a/b",
  "\0",
  "\udc80",
  "x" * 5000,
  [],
  {},
  [[[[[]]]]],
)


def damaged_sets(folder: pathlib.Path, count: int, seed: int) -> Iterator[Case]:
  """Cases of each kind: the index, the index of labels, labels, a frame, a zip."""
  folder.mkdir(parents=True)
  outcome = run_case(Case("sets", work=lambda: _make(folder)))
  assert outcome.kind == DONE, outcome.said
  kinds: dict[str, tuple[str, Callable[[pathlib.Path], None]]] = {
    "index": (clip_set.INDEX, _read_set),
    "index of labels": (f"{flow_store.FOLDER}/{flow_store.INDEX}", _read_set),
    "labels": (f"{flow_store.FOLDER}/beach.array_record", _read_set),
    "frame": (f"{BLUR_BICUBIC}/beach/00000001.png", _read_set),
    "zip": ("clips.zip", _read_zip),
  }
  for kind, (name, work) in kinds.items():
    for i in range(count):
      rng = np.random.default_rng((seed, zlib.crc32(kind.encode()), i))
      place = folder / f"{kind.replace(' ', '_')}_{i}"
      yield Case(
        f"sets {i}: {kind}",
        work=lambda place=place, work=work: work(place / "in"),
        check=lambda refused, place=place: _check(place),
        before=lambda place=place, name=name, rng=rng: _damage(folder, place, name, rng),
      )


def _make(folder: pathlib.Path) -> None:
  whole = folder / "whole"
  write_clip_set(whole, {"alley": 3, "beach": 4})
  for name, length in (("alley", 3), ("beach", 4)):
    write_flow(whole, name, length, _FRAMES, 1)
  write_png(folder / "frame.png", texture(24, 32))
  png = (folder / "frame.png").read_bytes()
  for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(whole / "clips.zip", "a", method) as target:
      for i in range(3):
        target.writestr(f"clip{method}/{i:08d}.png", png)


def _damage(folder: pathlib.Path, place: pathlib.Path, name: str, rng: np.random.Generator) -> None:
  shutil.copytree(folder / "whole", place / "in")
  (place / "kept.array_record").write_bytes(_KEPT)
  path = place / "in" / name
  if path.suffix == ".json" and rng.random() < 0.8:
    path.write_text(json.dumps(_other_values(json.loads(path.read_text()), rng)))
  else:
    path.write_bytes(mutate(path.read_bytes(), rng)[0])


def _other_values(tree: Any, rng: np.random.Generator) -> Any:
  """The tree with one of its values, or names, taken away or made an odd one."""
  places = list(_places(tree))
  parent, key = places[rng.integers(len(places))]
  odd = _ODD_VALUES[rng.integers(len(_ODD_VALUES))]
  if rng.random() < 0.2:
    del parent[key]
  elif isinstance(parent, dict) and isinstance(odd, str) and rng.random() < 0.5:
    parent[odd] = parent.pop(key)
  else:
    parent[key] = odd
  return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
  for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
    yield tree, key
    if isinstance(value, dict | list):
      yield from _places(value)


def _read_set(root: pathlib.Path) -> None:
  """Reads all that training reads of a set, and drops a clip's labels as a new preparation does."""
  for clip in open_clips(root, num_frames=_FRAMES, need_flow=True).clips:
    check_frames(clip)
    for centre in range(clip.length):
      shape = (_FRAMES, *clip.sizes[BLUR_BICUBIC], 2)
      assert clip.flow.read(centre, _FRAMES).shape == shape
  flow_store.drop_labels(root / flow_store.FOLDER, "beach")


def _read_zip(root: pathlib.Path) -> None:
  """Reads a zip's clips as a build does, which leaves the damaged ones out."""
  for frames in folders.find_streams(root / "clips.zip", "(?P<clip>[^/]+)").values():
    clip = releases.ReleasedClip("clip", 25, {"frames": frames})
    with contextlib.suppress(folders.BadClip):
      reading.read_clip(clip)


def _check(place: pathlib.Path) -> None:
  assert (place / "kept.array_record").read_bytes() == _KEPT
  assert {path.name for path in place.iterdir()} == {"in", "kept.array_record"}
