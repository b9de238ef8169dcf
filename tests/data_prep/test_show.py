"""Built sets as a sheet, in numbers and as a source for Grain."""

from __future__ import annotations

import pickle
import sys

import grain
import numpy as np
import pytest

from tests.data_prep import layouts
from tests.data_prep.test_builders import build
from vsr_jax.data_prep import built, show
from vsr_jax.data_prep.builders.vfhq import vfhq_dataset_builder as vfhq
from vsr_jax.errors import UserError
from vsr_jax.images import read_image


@pytest.fixture(scope="module")
def built_dir(tmp_path_factory):
  """vfhq/test_mild and vfhq/512 of few clips."""
  root = tmp_path_factory.mktemp("downloads")
  out = tmp_path_factory.mktemp("built")
  layouts.write_vfhq_test(root, range(3), 7)
  layouts.write_vfhq_train(root, range(2), 1)
  build(vfhq.Builder, "test_mild", root, out)
  build(vfhq.Builder, "512", root, out)
  return out


def run(monkeypatch, *arguments):
  monkeypatch.setattr(sys, "argv", ["show", *map(str, arguments)])
  show.main()


def test_the_sheet_shows_streams_and_landmarks(built_dir, tmp_path, monkeypatch, capsys):
  out = tmp_path / "sheet.png"
  run(monkeypatch, "vfhq/test_mild", "--data-dir", built_dir, "--output", out, "--clips", 2)
  text = capsys.readouterr().out
  assert "test: 3 clips, 0 skipped" in text
  assert "frames: 21; a clip 7 to 7, median 7" in text
  assert "frames a second: unknown" in text
  assert "sharp: 512x512\n  low_quality: 128x128" in text
  assert f"{layouts.vfhq_name(2)}: 7 frames, 7 with landmarks" in text
  assert f"{layouts.vfhq_name(0)}, {layouts.vfhq_name(2)} of test" in text
  sheet = read_image(out)
  side = show.WIDTH + show.MARGIN
  assert sheet.shape == (2 * (show.TITLE + 2 * side), 6 * side, 3)
  # Frame 6 of the second clip, the last column: each landmark where the text file has it.
  for stream in range(2):
    top = show.TITLE + 2 * side + show.TITLE + stream * side
    for point, colour in zip(layouts.points(2, 6), show.COLOURS, strict=True):
      x, y = np.rint(point * show.WIDTH / 512).astype(int)
      np.testing.assert_array_equal(sheet[top + y, 5 * side + x], colour)
  assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_what_cannot_be_shown_is_named(built_dir, tmp_path, monkeypatch):
  out = ("--data-dir", built_dir, "--output", tmp_path / "sheet.png")
  for arguments, message in (
    (("vfhq", *out), "several variants of vfhq; name one: vfhq/512, vfhq/test_mild"),
    (("reds/x4", *out), r"no data set reds/x4; make it by python -m vsr_jax.data_prep\.build"),
    (("vfhq/512", *out, "--split", "test"), r"512/1\.0\.0: has no split test, only train"),
    (("vfhq/512", *out, "--clips", 0), "--clips 0: must be 1 to 100"),
    (("vfhq/512", "--data-dir", built_dir, "--output", "a.jpg"), r"a\.jpg: the sheet is a PNG"),
  ):
    with pytest.raises(UserError, match=message):
      run(monkeypatch, *arguments)


def test_the_source_serves_grain_and_its_workers(built_dir):
  source = built.open_records("vfhq/test_mild", built_dir, "test")
  assert isinstance(source, grain.sources.RandomAccessDataSource)
  names = [layouts.vfhq_name(i) for i in range(3)]
  assert [clip.name for clip in grain.MapDataset.source(source)] == names
  copy = pickle.loads(pickle.dumps(source))
  assert repr(copy) == repr(source)
  clip = pickle.loads(pickle.dumps(copy[2]))
  assert clip.streams["low_quality"][3] == layouts.png(203, 128, 128)
  assert source.clips[2]["frames"] == len(clip.streams["sharp"]) == 7


def test_a_damaged_set_is_named(built_dir, tmp_path):
  folder = built.find_folder("vfhq/512", built_dir)
  for name, text in (("clips.json", "{"), ("dataset_info.json", "")):
    copy = tmp_path / name
    copy.mkdir()
    for path in folder.iterdir():
      (copy / path.name).write_bytes(path.read_bytes())
    (copy / name).write_text(text)
    with pytest.raises(UserError, match=rf"{name}: damaged"):
      built.Records(copy, "train")
    (copy / name).unlink()
    with pytest.raises(UserError, match=rf"{name}: missing"):
      built.Records(copy, "train")


def test_the_newest_version_is_opened(tmp_path):
  for version in ("1.0.0", "1.10.0", "1.9.0", "2.0.0.unfinished"):
    (tmp_path / "reds" / "x4" / version).mkdir(parents=True)
    (tmp_path / "reds" / "x4" / version / "dataset_info.json").touch()
  assert built.find_folder("reds", tmp_path).name == "1.10.0"
