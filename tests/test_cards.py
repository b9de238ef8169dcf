"""Weights that ship have a card that tells data, licence, intended use, scores and limits."""

from __future__ import annotations

import json
import math
import pathlib
import re

import numpy as np
import pytest

from tests.test_house import ROOT, house_files

FOLDER = "docs/cards/"
SECTIONS = ["Data", "Licence", "Intended use", "Scores", "Limits"]


def cards() -> dict[str, str]:
  found = house_files(f"{FOLDER}*.md")
  del found[f"{FOLDER}index.md"]
  return found


def row(card: str, name: str) -> str:
  return re.search(rf"^\| {name} \| (.*) \|$", card, re.MULTILINE)[1]


def named(card: str) -> list[pathlib.Path]:
  return [ROOT / path for path in re.findall(r"`([^`]+)`", row(card, "files"))]


def files(place: pathlib.Path) -> list[pathlib.Path]:
  return [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]


def test_all_weights_that_ship_have_one_card():
  found = [path for card in cards().values() for place in named(card) for path in files(place)]
  assets = [path for folder in ROOT.glob("*_jax/**/assets") for path in files(folder)]
  assert len(assets) > 20
  assert sorted(found) == sorted(path for path in assets if path.parent.name != "demo_clip")


@pytest.mark.parametrize("path", sorted(cards()))
def test_a_card_tells_what_one_must_know(path):
  card = cards()[path]
  parts = re.split(r"^## (.*)\n", card, flags=re.MULTILINE)
  assert parts[1::2] == SECTIONS
  assert all(len(text.split()) > 5 for text in parts[2::2])
  assert f"({pathlib.Path(path).name})" in (ROOT / FOLDER / "index.md").read_text()


@pytest.mark.parametrize("path", sorted(cards()))
def test_a_card_s_size_is_that_of_its_files(path):
  card = cards()[path]
  stored = sum(file.stat().st_size for place in named(card) for file in files(place))
  assert row(card, "size").startswith(f"{stored / 1e6:.1f} MB; ")


def test_the_parameters_told_are_those_that_are_stored():
  for name, asset in (
    ("mtcnn", "faces/assets/mtcnn.npz"),
    ("mobileface", "faces/assets/mobileface.npz"),
    ("face_mesh", "faces/assets/mesh.npz"),
    ("raft_small", "flow/assets/raft_small.npz"),
  ):
    with np.load(ROOT / "vsr_jax" / asset) as stored:
      (dtype,) = {str(stored[key].dtype) for key in stored}
      count = sum(stored[key].size for key in stored)
    assert f"; {count:,} parameters, {dtype}" in row(cards()[f"{FOLDER}{name}.md"], "size")


@pytest.mark.parametrize("system", ["fmanet", "keep"])
def test_the_parameters_told_of_checkpoints_are_those_that_are_stored(system):
  meta = ROOT / f"{system}_jax" / "assets" / "demo_weights" / "meta" / "meta.json"
  stored = json.loads(meta.read_text())["arrays"]["params"].values()
  shapes = [re.fullmatch(r"(float\d+)\[([\d,]*)\]", entry).groups() for entry in stored]
  (dtype,) = {dtype for dtype, _ in shapes}
  count = sum(math.prod(int(n) for n in shape.split(",") if n) for _, shape in shapes)
  assert f"; {count:,} parameters, {dtype}" in row(cards()[f"{FOLDER}{system}_demo.md"], "size")
