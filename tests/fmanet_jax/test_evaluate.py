"""What the evaluation scores, writes, keeps and refuses; a stand-in does the restoring."""

from __future__ import annotations

import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from fmanet_jax import evaluate
from fmanet_jax.architecture import Architecture
from tests.data_prep.helpers import texture, write_clip, write_clip_set, write_png
from tests.fmanet_jax.evaluating import data, frames_of, repeated, run, scores, stand_in
from vsr_jax.data_prep.clip import BLUR_BICUBIC, SHARP, STREAMS
from vsr_jax.images import read_image
from vsr_jax.metrics import ClipScore, rgb_psnr
from vsr_jax.ops.resize import resize_bicubic

__all__ = ["data", "run", "stand_in"]  # fixtures


def expected(data, name, span=slice(1, -1)):
  truths, blurry = (frames_of(data, stream, name)[span] for stream in ("sharp", "blur_bicubic"))
  bicubic = scores(truths, [resize_bicubic(frame, 4) for frame in blurry])
  restored = scores(truths, [repeated(frame) for frame in blurry])
  return {"bicubic": bicubic, "FMA-Net": restored}


def check(row, wanted, method="FMA-Net"):
  assert list(row["scores"]) == ["bicubic", method]
  for found, means in zip(row["scores"].values(), wanted.values(), strict=True):
    # Sums of the same float64 numbers, in another order.
    assert found == pytest.approx(means, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("tile", [None, 20])  # by itself where whole frames do not fit
def test_interior_frames_are_scored_as_the_metrics_say(run, data, monkeypatch, tile):
  monkeypatch.setattr(evaluate.enlarger, "fitting_tile", lambda *_: tile)
  found = run(data)
  assert found["complete"]
  assert found["skipped"] == {}
  assert [(row["name"], row["frames"]) for row in found["clips"]] == [("alley", 2), ("beach", 4)]
  for row in found["clips"]:
    check(row, expected(data, row["name"]))


def test_the_total_is_a_mean_over_frames_and_over_pairs(run, data):
  found = run(data)
  alley, beach = (row["scores"]["FMA-Net"] for row in found["clips"])
  total = found["total"]["scores"]["FMA-Net"]
  assert found["total"]["frames"] == 6
  assert total["psnr"] == pytest.approx((2 * alley["psnr"] + 4 * beach["psnr"]) / 6, rel=1e-12)
  assert total["ssim"] == pytest.approx((2 * alley["ssim"] + 4 * beach["ssim"]) / 6, rel=1e-12)
  assert total["tof"] == pytest.approx((1 * alley["tof"] + 3 * beach["tof"]) / 4, rel=1e-12)


def test_all_frames_and_some_clips_can_be_asked_for(run, data):
  found = run(data, "--all-frames", "--clips", "beach", "--frames", 5)
  (row,) = found["clips"]
  assert (row["name"], row["frames"]) == ("beach", 5)
  check(row, expected(data, "beach", slice(0, 5)))


def test_longer_windows_leave_out_more_frames(run, data, stand_in):
  stand_in.arch = Architecture(frames=5)
  found = run(data)
  assert [(row["name"], row["frames"]) for row in found["clips"]] == [("beach", 2)]
  check(found["clips"][0], expected(data, "beach", slice(2, -2)))
  assert found["skipped"] == {"alley": "has 4 frames, a window 5"}


def test_checkpoint_and_dtype_reach_the_restorer(run, data, stand_in):
  found = run(data, "--checkpoint", "weights", "--dtype", "bfloat16")
  assert stand_in.checkpoint == found["checkpoint"] == "weights"
  assert stand_in.model.dtype == jax.numpy.bfloat16
  found = run(data)
  assert stand_in.checkpoint is found["checkpoint"] is None
  assert stand_in.model.dtype == jax.numpy.float32


def test_the_table_shows_what_the_json_holds(run, data, tmp_path, capsys):
  found = run(data)
  path = tmp_path / "out" / "metrics.md"
  rows = [
    line.strip("| ").split(" | ") for line in path.read_text().splitlines() if line.startswith("|")
  ]
  assert rows[0] == ["clip", "method", "frames", "PSNR ↑", "SSIM ↑", "tOF ↓"]
  parts = [{"name": "total", **found["total"]}, *found["clips"]]
  assert [row[:3] for row in rows[2:]] == [
    [part["name"], method, str(part["frames"])] for part in parts for method in found["methods"]
  ]
  for part, bicubic, ours in zip(parts, rows[2::2], rows[3::2], strict=True):
    base, x = (part["scores"][name] for name in ("bicubic", "FMA-Net"))
    gain = {name: x[name] - base[name] for name in x}
    assert bicubic[3:] == "{psnr:.2f} {ssim:.4f} {tof:.3f}".format(**base).split()
    shown = "{psnr:.2f} {ssim:.4f} {tof:.3f}".format(**x).split()
    gains = "{psnr:+.2f} {ssim:+.4f} {tof:+.3f}".format(**gain).split()
    assert ours[3:] == [f"{a} ({b})" for a, b in zip(shown, gains, strict=True)]
  assert path.read_text() in capsys.readouterr().out


def test_the_truth_as_output_is_perfect(run, data):
  found = run(data, "--outputs", data / "sharp")
  assert found["methods"] == ["bicubic", "sharp"]
  scores = found["clips"][1]["scores"]["sharp"]
  assert scores == {"psnr": None, "ssim": pytest.approx(1), "tof": 0.0}


def test_strips_have_the_scores_of_their_frames(run, data, tmp_path):
  run(data, "--clips", "beach")
  told = json.loads((tmp_path / "out" / "strips" / "beach.json").read_text())
  assert [frame["number"] for frame in told["frames"]] == [1, 2, 3, 4]
  assert list(told["widths"]) == ["input", "bicubic", "FMA-Net", "truth"]
  truth, blurry = (frames_of(data, stream, "beach")[3] for stream in (SHARP, BLUR_BICUBIC))
  scores = told["frames"][2]["scores"]["FMA-Net"]
  assert scores["psnr"] == pytest.approx(rgb_psnr(truth, repeated(blurry)))
  picture = read_image(tmp_path / "out" / "strips" / "beach.png")
  assert picture.shape == (4 * told["height"], sum(told["widths"].values()), 3)


def test_several_methods_are_rows_of_one_table(run, data):
  outputs = "--outputs", data / "sharp", "--outputs", f"mine={data / 'sharp'}"
  found = run(data, "--checkpoint", "weights", *outputs)
  assert found["methods"] == ["bicubic", "FMA-Net", "sharp", "mine"]
  for row in [*found["clips"], found["total"]]:
    assert row["scores"]["sharp"] == row["scores"]["mine"]
  scores = found["clips"][0]["scores"]
  ours = {"scores": {name: scores[name] for name in ("bicubic", "FMA-Net")}}
  check(ours, expected(data, "alley"))


def test_saved_frames_score_the_same(run, data, tmp_path):
  first = run(data, "--save-frames", tmp_path / "saved")
  saved = frames_of(tmp_path, "saved", "beach")
  blurry = frames_of(data, "blur_bicubic", "beach")
  np.testing.assert_array_equal(saved, [repeated(frame) for frame in blurry])
  second = run(data, "--outputs", f"FMA-Net={tmp_path / 'saved'}", out="out2")
  assert (second["clips"], second["total"]) == (first["clips"], first["total"])
  third = run(data, "--outputs", tmp_path / "saved", "--clips", "beach", "--frames", 4)
  check(third["total"], expected(data, "beach", slice(1, 3)), "saved")


@pytest.mark.parametrize(
  "names",
  [
    pytest.param([None, "00000001.png", "00000002.png", None], id="as the truth"),
    pytest.param([None, "f9.png", "f10.png", None], id="the scored ones"),
    pytest.param([f"f{i}.png" for i in (8, 9, 10, 11)], id="all"),
    pytest.param([f"{i:08d}.png" for i in (1, 2, 3, 4)], id="all, counted from one"),
  ],
)
def test_outputs_of_other_methods_are_found(run, data, tmp_path, names):
  for name, blurry in zip(names, frames_of(data, "blur_bicubic", "alley"), strict=True):
    if name:
      write_png(tmp_path / "theirs" / "alley" / name, repeated(blurry))
  found = run(data, "--outputs", tmp_path / "theirs", "--clips", "alley")
  check(found["clips"][0], expected(data, "alley"), "theirs")


def reds_folder(root, stream, name):
  place = root / f"train_{stream}" / "train" / f"train_{stream}"
  return (place if stream == SHARP else place / "X4") / name


@pytest.fixture
def reds(tmp_path):
  for k, name in enumerate(("000", "001", "011", "015", "020")):
    folders = {stream: reds_folder(tmp_path / "reds", stream, name) for stream in STREAMS}
    write_clip(folders, [texture(96, 128, 20 * k + 3 * i) for i in range(3)])
  return tmp_path / "reds"


def test_reds4_as_released(run, reds):
  found = run(reds)
  assert [row["name"] for row in found["clips"]] == ["000", "011", "015", "020"]
  assert {row["frames"] for row in found["clips"]} == {1}
  assert found["total"]["scores"]["FMA-Net"]["tof"] is None  # one frame a clip has no pair
  truth, blurry = (
    read_image(reds_folder(reds, stream, "015") / "00000001.png")
    for stream in (SHARP, BLUR_BICUBIC)
  )
  psnr = rgb_psnr(truth, repeated(blurry))
  assert found["clips"][2]["scores"]["FMA-Net"]["psnr"] == pytest.approx(psnr, rel=1e-12)


def test_a_damaged_clip_of_reds4_is_told_in_the_report(run, reds, tmp_path):
  frame = reds_folder(reds, SHARP, "011") / "00000002.png"
  frame.write_bytes(frame.read_bytes()[:-20])
  found = run(reds)
  assert [row["name"] for row in found["clips"]] == ["000", "015", "020"]
  assert list(found["skipped"]) == ["011"]
  assert "Skipped 1 of 4 clips: 011 (" in (tmp_path / "out" / "metrics.md").read_text()


def spoil(path):
  """Damages a PNG's pixels; its header and its end stay whole."""
  data = bytearray(path.read_bytes())
  middle = len(data) // 2
  data[middle : middle + 64] = bytes(64)
  path.write_bytes(data)


@pytest.mark.parametrize("stream", ["sharp", "blur_bicubic"])
def test_a_clip_that_does_not_decode_is_skipped_named_and_counted(run, data, tmp_path, stream):
  spoil(data / stream / "alley" / "00000002.png")
  found = run(data, "--save-frames", tmp_path / "saved")
  assert found["complete"]
  assert [row["name"] for row in found["clips"]] == ["beach"]
  assert found["total"]["frames"] == 4
  assert "00000002.png" in found["skipped"]["alley"]
  assert "Skipped 1 of 2 clips: alley (" in (tmp_path / "out" / "metrics.md").read_text()
  assert os.listdir(tmp_path / "saved") == ["beach"]


def test_outputs_of_another_size_are_skipped(run, data, tmp_path):
  shutil.copytree(data / "sharp" / "alley", tmp_path / "theirs" / "alley")
  shutil.copytree(data / "blur_bicubic" / "beach", tmp_path / "theirs" / "beach")
  found = run(data, "--outputs", tmp_path / "theirs")
  assert "restored to 32x24 but the truth" in found["skipped"]["beach"]
  found = run(data, "--outputs", tmp_path / "theirs", "--clips", "beach", code=2)
  assert found["clips"] == []


@pytest.mark.parametrize(
  ("signal_number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 2)], ids=["Ctrl-C", "SIGTERM"]
)
def test_an_interrupted_run_keeps_finished_clips(
  run, data, tmp_path, stand_in, signal_number, code
):
  first = frames_of(data, "blur_bicubic", "beach")[3]

  def interrupt(frame):
    if np.array_equal(frame, first):
      signal.raise_signal(signal_number)

  stand_in.before = interrupt
  found = run(data, "--save-frames", tmp_path / "saved", code=code)
  assert not found["complete"]
  assert [row["name"] for row in found["clips"]] == ["alley"]
  check(found["clips"][0], expected(data, "alley"))
  check(found["total"], expected(data, "alley"))
  assert "Incomplete" in (tmp_path / "out" / "metrics.md").read_text()
  assert os.listdir(tmp_path / "saved") == ["alley"]
  assert sorted(os.listdir(tmp_path / "out")) == ["metrics.json", "metrics.md", "strips"]
  assert sorted(os.listdir(tmp_path / "out" / "strips")) == ["alley.json", "alley.png"]


def test_an_older_result_does_not_pass_for_this_run(run, data, stand_in):
  assert run(data)["complete"]
  stand_in.before = lambda frame: signal.raise_signal(signal.SIGINT)
  found = run(data, code=130)
  assert not found["complete"]
  assert found["clips"] == []


def test_a_full_disk_leaves_no_half_written_report(run, data, tmp_path, monkeypatch, capsys):
  run(data)
  before = sorted((tmp_path / "out").rglob("*"))

  def replace(source, target):
    raise OSError(28, "No space left on device", str(target))

  monkeypatch.setattr(os, "replace", replace)
  found = run(data, code=2)
  assert "no space left" in capsys.readouterr().err
  assert found["complete"]  # the older one
  assert sorted((tmp_path / "out").rglob("*")) == before


def too_few_outputs(data):
  shutil.copytree(data / "sharp", data.parent / "theirs")
  for i in (2, 3, 4):
    (data.parent / "theirs" / "beach" / f"{i:08d}.png").unlink()


# What happens to data/ (or beside it) beforehand, the arguments, and what the line says.
BAD_INPUT = {
  "no data": (None, "missing", "missing: no such folder of clips"),
  "no clips": (None, "data/sharp", "neither a clip set"),
  "no truth": (lambda data: shutil.rmtree(data / "sharp"), "data", "sharp/alley: missing"),
  "misspelt clip": (None, "data --clips aley,beach", "no clip aley; there are alley beach"),
  "too few frames": (None, "data --frames 2", "--frames 2: at least 3"),
  "damaged clip": (
    lambda data: (data / "sharp" / "beach" / "00000002.png").write_bytes(b""),
    "data --clips beach",
    "beach cannot be read",
  ),
  "too small": (
    lambda data: write_clip_set(data, {"alley": 4}, h=8, w=32),
    "data",
    "too small for tOF",
  ),
  "out is a file": (
    lambda data: write_png(data.parent / "a.png", texture(8, 8)),
    "data --out a.png",
    "cannot make this folder",
  ),
  "out is taken": (
    lambda data: (data.parent / "out" / "metrics.json").mkdir(parents=True),
    "data",
    "metrics.json: cannot be written",
  ),
  "saved over the data": (None, "data --save-frames data/sharp", "lies within the data"),
  "saved over other files": (
    lambda data: (data.parent / "saved" / "beach" / "mine").mkdir(parents=True),
    "data --save-frames saved",
    "saved/beach/: the folder holds other files",
  ),
  "two rows of one name": (
    None,
    "data --outputs data/sharp --outputs data/sharp",
    "sharp: two rows have this name; give NAME=DIR",
  ),
  "no outputs": (None, "data --outputs theirs", "restore alley or leave it out"),
  "too few outputs": (
    too_few_outputs,
    "data --outputs theirs",
    "theirs/beach: 3 images, but the clip has 6 frames of which 4 are scored",
  ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_exit_code_2(run, data, monkeypatch, capsys, case):
  prepare, args, message = BAD_INPUT[case]
  if prepare:
    prepare(data)
  monkeypatch.chdir(data.parent)
  monkeypatch.setattr(ClipScore, "add", lambda *args: pytest.fail("it should not begin"))
  assert run(*args.split(), code=2) is None
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("error: ")
  assert message in line


def test_a_checkpoint_of_another_scale_is_refused(run, data, stand_in, capsys):
  stand_in.arch = Architecture(scale=2)
  assert run(data, code=2) is None
  (line,) = capsys.readouterr().err.splitlines()
  assert "00000000.png: 4 times the input's size, but the checkpoint restores at scale 2" in line
