"""The demonstration's faces: nobody who is validated on is trained on."""

from __future__ import annotations

import csv
import functools
import re

import pytest

from tests.data_prep.test_animate import write_stills
from vsr_jax.data_prep import align, animate, demo_faces, demo_split
from vsr_jax.data_prep.clip import SHARP
from vsr_jax.data_prep.opening import open_clips
from vsr_jax.faces import detector
from vsr_jax.faces.detections import none_found


def person(name):
  """Who a portrait shows: the London set has two pictures a person."""
  london = re.fullmatch(r"webmorph_(?:neutral|smiling)_front_(\d+)_\d+", name)
  return f"london {london[1]}" if london else name


def test_the_lists_do_not_overlap():
  assert len(set(demo_split.VALIDATION)) == len(demo_split.VALIDATION) >= 20
  assert set(demo_split.VALIDATION) <= demo_split.HELD_OUT
  assert len({person(name) for name in demo_split.VALIDATION}) == len(demo_split.VALIDATION)
  assert len(demo_split.REAL_VALIDATION) >= 3
  assert not set(demo_split.REAL_VALIDATION) & set(demo_split.REAL_TRAINING)


def test_what_is_held_out_is_the_validation_split_of_the_portraits(shared):
  with (shared / "data/face_stills/index.csv").open() as file:
    splits = {row["file"].removesuffix(".jpg"): row["split"] for row in csv.DictReader(file)}
  validation = {name for name, split in splits.items() if split == "validation"}
  assert validation | demo_split.SAME_PERSON == demo_split.HELD_OUT
  training = demo_faces.training_stills(shared / "data/face_stills")
  trained_on = {still.stem for still in training}
  assert len(trained_on) == 896
  assert not set(map(person, trained_on)) & set(map(person, demo_split.HELD_OUT))


@pytest.fixture
def run(run_main, monkeypatch):
  monkeypatch.setattr(detector, "make_detector", lambda: lambda _: none_found())
  return functools.partial(run_main, demo_faces.main)


def all_stills(folder, training):
  """Small portraits: those for validation, and of the names given for training."""
  held_out = demo_split.HELD_OUT - demo_split.SAME_PERSON - set(training)
  splits = {f"{name}.png": "validation" for name in sorted(held_out)}
  write_stills(folder, splits | {f"{name}.png": "train" for name in training})


def test_no_clip_of_a_person_who_is_held_out_gets_into_the_training_set(run, tmp_path, monkeypatch):
  stills, videos, out = (tmp_path / name for name in ("stills", "videos", "out"))
  all_stills(stills, ["anna", *demo_split.SAME_PERSON])
  videos.mkdir()
  for name in demo_split.REAL_TRAINING + demo_split.REAL_VALIDATION:
    (videos / f"{name}.mp4").touch()
  aligned = {}
  monkeypatch.setattr(
    align, "make_set", lambda sources, to, *_: aligned.setdefault(to.name, sources)
  )
  run(stills, videos, "--out", out, "--frames", 1, "--size", 16)
  trained_on = {clip.name for clip in open_clips(out / "train", streams=(SHARP,)).clips}
  assert trained_on == {"anna"}
  validation = open_clips(out / "validation", streams=(SHARP,)).clips
  assert sorted(clip.name for clip in validation) == sorted(demo_split.VALIDATION)
  assert [source.name for source in aligned["train"]] == demo_split.REAL_TRAINING
  assert [source.name for source in aligned["validation_real"]] == demo_split.REAL_VALIDATION


def test_an_index_that_would_train_on_a_validation_portrait_is_refused(run, tmp_path):
  (tmp_path / "videos").mkdir()
  all_stills(tmp_path / "stills", ["anna", demo_split.VALIDATION[0]])
  arguments = tmp_path / "stills", tmp_path / "videos", "--out", tmp_path / "out"
  said = run(*arguments, code=2)
  assert f"{demo_split.VALIDATION[0]}.png is for validation" in said.err
  all_stills(tmp_path / "stills", ["anna"])
  assert "has no video liveportrait_d0.mp4" in run(*arguments, code=2).err
  (tmp_path / "stills" / animate.INDEX).write_text("file,split\nanna.png,train\n")
  assert "has no split validation" in run(*arguments, code=2).err
  assert not (tmp_path / "out").exists()
