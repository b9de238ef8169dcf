"""What KEEP's evaluation refuses, skips and leaves out."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from keep_jax import evaluate, evaluation_networks
from keep_jax.face_scores import METRICS, Networks
from tests.data_prep.helpers import texture, write_png
from tests.keep_jax.evaluating import NETWORKS, SIZE, data, run, stand_ins
from vsr_jax import lpips
from vsr_jax.errors import UserError

__all__ = ["data", "run", "stand_ins"]  # fixtures


def spoil_size(data):
  shutil.copytree(data, data.parent / "theirs")
  write_png(data.parent / "theirs" / "ben" / "00000001.png", texture(32, 32))


def spoil_count(data):
  shutil.copytree(data, data.parent / "theirs")
  (data.parent / "theirs" / "ben" / "00000001.png").unlink()


def leave_out(data):
  shutil.copytree(data / "anna", data.parent / "theirs" / "anna")


def no_faces(data):
  for path in data.rglob("*.png"):
    write_png(path, np.zeros((SIZE, SIZE, 3), np.uint8))


def other_sizes(data):
  shutil.rmtree(data / "ben")
  write_png(data / "ben" / "00000000.png", texture(32, 32))


def not_square(data):
  shutil.rmtree(data / "ben")
  write_png(data / "ben" / "00000000.png", texture(32, 64))


# What happens to data/ (or beside it) beforehand, the arguments, and what the line says.
BAD_INPUT = {
  "no data": (None, "missing --checkpoint w", "missing: no such folder of clips"),
  "two rows of one name": (None, "data --checkpoint a=x --outputs a=y", "a: two rows have this"),
  "a row named truth": (None, "data --checkpoint truth=x", "truth: two rows have this name"),
  "a clip missing in the outputs": (
    leave_out,
    "data --outputs theirs",
    "theirs/ben: no such folder or video; restore ben or leave it out",
  ),
  "fewer outputs": (
    spoil_count,
    "data --outputs theirs",
    "theirs/ben: 2 images, but the clip has 3 frames",
  ),
  "clips of two sizes": (other_sizes, "data --outputs data", "aligned faces of several sizes"),
  "no aligned faces": (
    not_square,
    "data --outputs data",
    "clip ben: 64x32 without landmarks is no aligned face",
  ),
  "another size": (None, "data --outputs data --size 128", "aligned at 64 already"),
  "a size for whole frames": (None, "data --outputs data --whole-frames --size 64", "--size 64"),
  "frames without low quality": (
    None,
    "data --outputs data --degradation low_quality",
    "clip anna has no stream low_quality, only sharp",
  ),
  "wrong window": (None, "data --checkpoint w --window 1", "--window 1: must be 2 to"),
  "saved into the data": (None, "data --checkpoint w --save-inputs data/x", "lies within the data"),
  "saved over other files": (
    lambda data: (data.parent / "saved" / "ben" / "mine").mkdir(parents=True),
    "data --save-inputs saved",
    "saved/ben/: the folder holds other files",
  ),
  "misspelt metric": (None, "data --outputs data --metrics psnr,idx", "no metric 'idx'; there are"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_exit_code_2(run, data, monkeypatch, case):
  prepare, args, message = BAD_INPUT[case]
  if prepare:
    prepare(data)
  monkeypatch.chdir(data.parent)
  monkeypatch.setattr(evaluate, "score_clip", lambda *_: pytest.fail("it should not begin"))
  found, said = run(*args.split(), code=2)
  assert found is None
  (line,) = said.err.splitlines()
  assert line.startswith("error: ")
  assert message in line


def test_what_cannot_be_scored_is_skipped_and_named(run, data, monkeypatch, tmp_path):
  spoil_size(data)
  found, _ = run(data, "--outputs", tmp_path / "theirs")
  assert [row["name"] for row in found["clips"]] == ["anna"]
  assert "frame 1 was restored to 32x32 but the truth" in found["skipped"]["ben"]
  assert "Skipped 1 of 2 clips: ben (" in (tmp_path / "out" / "metrics.md").read_text()


def test_frames_too_small_for_the_metrics_are_told(run, tmp_path):
  write_png(tmp_path / "small" / "a" / "00000000.png", texture(24, 24))
  found, said = run(tmp_path / "small", "--outputs", tmp_path / "small", code=2)
  assert found["skipped"] == {"a": "frames of 24x24: metrics need 32 pixels"}


def test_a_set_without_faces_is_an_error(run, data):
  no_faces(data)
  found, said = run(data, "--outputs", data, code=2)
  assert found["clips"] == []
  assert all("the truth shows no face" in reason for reason in found["skipped"].values())
  assert said.err.splitlines()[-1].startswith("error: ")
  assert "no clip could be scored" in said.err


def test_a_value_that_is_not_finite_is_told(run, data, stand_ins):
  stand_ins.networks = NETWORKS._replace(distance=lambda a, b: np.nan)
  found, said = run(data, "--checkpoint", "w", code=2)
  assert found["skipped"]["anna"] == "frame 0 of bicubic: lpips is nan, not finite"


def parsed(*arguments):
  parser = evaluate.cli.Parser("keep_jax.evaluate", "")
  evaluation_networks.add_arguments(parser)
  return parser.parse_args([str(x) for x in arguments])


def test_lpips_without_weights(monkeypatch, tmp_path):
  monkeypatch.setattr(lpips, "default_path", lambda network: tmp_path / f"{network}.npz")
  for module, name in (("identity", "load"), ("mesh", "load"), ("released", "load")):
    stand_in = (
      (lambda path=None: ("none", {})) if module == "released" else lambda path=None: {"a": 0}
    )
    monkeypatch.setattr(getattr(evaluation_networks, module), name, stand_in)
  measuring = evaluation_networks.load(parsed())
  assert [m.name for m in measuring.metrics if m.name == "lpips"] == []
  assert len(measuring.metrics) == len(METRICS) - 1
  assert lpips.COMMAND in measuring.note
  assert any(lpips.COMMAND in note for note in evaluation_networks.describe(measuring))
  for asked in (["--metrics", "psnr,lpips"], ["--lpips-weights", tmp_path / "x.npz"]):
    with pytest.raises(UserError, match="LPIPS's weights are missing; get them by"):
      evaluation_networks.load(parsed(*asked))


def test_only_the_networks_that_are_needed_are_loaded(monkeypatch):
  for module in ("identity", "mesh", "released", "lpips"):
    network = getattr(evaluation_networks, module)
    monkeypatch.setattr(network, "load", lambda *_: pytest.fail("not needed"))
  measuring = evaluation_networks.load(parsed("--metrics", "ssim,psnr"))
  assert [metric.name for metric in measuring.metrics] == ["psnr", "ssim"]
  assert measuring.networks == Networks()
