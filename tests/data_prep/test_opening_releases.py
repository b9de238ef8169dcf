"""Downloads and plain frames are opened as they are: zips and folders, streams, splits."""

from __future__ import annotations

import shutil
import zipfile

import numpy as np
import pytest

from tests.data_prep import layouts
from tests.data_prep.helpers import texture, write_png
from vsr_jax.data_prep import face_pipeline, meta_info
from vsr_jax.data_prep.opening import open_clips
from vsr_jax.errors import UserError
from vsr_jax.images import encode_image

STREAMS = ("sharp", "sharp_bicubic", "blur_bicubic")


@pytest.mark.parametrize("zipped", [True, False])
def test_reds_zips_are_those_of_the_folders(tmp_path, zipped):
  layouts.write_reds(tmp_path, STREAMS, {"train": range(21), "val": range(2)}, 2, zipped)
  opened = open_clips(tmp_path)
  assert [clip.name for clip in opened.clips][:3] == ["001", "002", "003"]
  assert [clip.name for clip in opened.clips][-2:] == ["240", "241"]
  clip = opened.clips[-1]
  assert (clip.length, clip.rate, clip.scale) == (2, 24, 4)
  assert list(clip.streams["blur_bicubic"]) == [layouts.png(5016 + 4 * i + 2, 2, 3) for i in (0, 1)]
  assert [clip.name for clip in open_clips(tmp_path, split="test").clips] == list(layouts.REDS4)
  with pytest.raises(UserError, match="has no split validation, only train and test"):
    open_clips(tmp_path, split="validation")


def test_a_stream_that_was_not_downloaded_is_named(tmp_path):
  layouts.write_reds(tmp_path, STREAMS[:2], {"train": range(3), "val": range(1)}, 2)
  with pytest.raises(UserError, match="clip 001 has no frames of blur_bicubic; extract or"):
    open_clips(tmp_path)
  opened = open_clips(tmp_path, streams=None)
  assert opened.clips[0].streams.keys() == {"sharp", "sharp_bicubic"}
  with pytest.raises(UserError, match="REDS has no stream low_quality, only sharp, "):
    open_clips(tmp_path, streams=["low_quality"])


def test_gopro_has_its_frames_of_full_size(tmp_path):
  layouts.write_gopro(tmp_path, 2)
  opened = open_clips(tmp_path, streams=None, split="test")
  assert [clip.name for clip in opened.clips] == layouts.GOPRO_TEST
  clip = opened.clips[0]
  assert clip.rate == pytest.approx(240 / 11)
  assert clip.sizes == {"sharp": (8, 12), "blur": (8, 12)}
  assert clip.streams["blur"][1] == layouts.png(4005, 8, 12)
  with pytest.raises(UserError, match="has no stream sharp_bicubic, only sharp, blur; name"):
    open_clips(tmp_path)
  with pytest.raises(UserError, match="has no split validation, only train and test"):
    open_clips(tmp_path, split="validation", streams=None)


def test_vfhq_feeds_keeps_pipeline_without_being_built(tmp_path):
  layouts.write_vfhq_train(tmp_path, range(3), 2)
  opened = open_clips(tmp_path, streams=["sharp"])
  assert [clip.name for clip in opened.clips] == [layouts.vfhq_name(i) for i in range(3)]
  for i, clip in enumerate(opened.clips):
    assert clip.streams["sharp"][1] == layouts.png(100 * i + 1, 512, 512)
    np.testing.assert_array_equal(clip.landmarks, [layouts.points(i, k) for k in range(2)])
  faces = face_pipeline.images(opened.clips, seed=0, size=64, epochs=1)
  assert faces[0]["gt"].shape == (64, 64, 3)
  shutil.rmtree(tmp_path / meta_info.FOLDER)  # which data_prep.landmarks is to make
  assert [len(clip.landmarks) for clip in open_clips(tmp_path, streams=["sharp"]).clips] == [0] * 3


def test_landmarks_that_are_no_text_are_told_when_they_are_read(tmp_path):
  layouts.write_vfhq_train(tmp_path, range(1), 2)
  (tmp_path / meta_info.FOLDER / f"{layouts.vfhq_name(0)}.txt").write_text("0000.png 3")
  (clip,) = open_clips(tmp_path, streams=["sharp"]).clips
  with pytest.raises(UserError, match=r"\.txt:1: 2 words .*; get or make the file again"):
    clip.landmarks[0]


def test_vfhqs_test_has_both_qualities(tmp_path):
  layouts.write_vfhq_test(tmp_path, range(2), 2)
  opened = open_clips(tmp_path, split="test", streams=None)
  assert opened.clips[1].sizes == {"sharp": (512, 512), "low_quality": (128, 128)}
  assert opened.clips[1].decode("low_quality", 1).shape == (128, 128, 3)


def test_plain_frames_are_the_stream_sharp(tmp_path):
  for name in ("b", "a"):
    for i in (2, 10):  # in natural order
      write_png(tmp_path / "set" / name / f"{i}.png", texture(16, 24, i))
  with zipfile.ZipFile(tmp_path / "set/c.zip", "w") as z:
    z.writestr("c/0.jpg", encode_image(texture(16, 24), ".jpg"))
  opened = open_clips(tmp_path / "set", streams=["sharp"], split="any")
  assert [(clip.name, clip.length) for clip in opened.clips] == [("a", 2), ("b", 2), ("c", 1)]
  np.testing.assert_array_equal(opened.clips[0].decode("sharp", 1), texture(16, 24, 10))
  assert opened.clips[2].decode("sharp", 0).shape == (16, 24, 3)
  (clip,) = open_clips(tmp_path / "set/a", streams=None).clips
  assert (clip.name, clip.length) == ("a", 2)
  (clip,) = open_clips(tmp_path / "set/c.zip", streams=None).clips
  assert clip.label("sharp", 0).endswith("c.zip/c/0.jpg")
  with pytest.raises(UserError, match="only plain frames, which have no stream sharp_bicubic: it"):
    open_clips(tmp_path / "set")


def test_released_labels_of_moved_clips_are_found_where_they_are(tmp_path):
  """FMA-Net's script moves REDS4 among the validation clips and those among the training clips."""
  layouts.write_reds(tmp_path, STREAMS, {"train": range(1, 2), "val": range(1)}, 3, False)
  for subset, clips in (("train", ("001", "240")), ("val", ("000",))):
    for name in clips:
      folder = tmp_path / f"{subset}_flow_bicubic" / layouts.reds_folder(subset, "flow_bicubic")
      (folder / name).mkdir(parents=True)
      for neighbour in (0, 2):
        flow = np.full((2, 3, 2), int(name), np.float32)
        np.save(folder / name / f"00000001_{neighbour:08d}.npy", flow)
  # As released: validation clip 000 is 240; the folder train/240 is not its.
  opened = open_clips(tmp_path, num_frames=3, need_flow=True)
  assert {clip.name: clip.flow.read(1, 3)[0, 0, 0, 0] for clip in opened.clips} == {
    "001": 1,
    "240": 0,
  }
  for name in STREAMS:
    train, val = (
      tmp_path / f"{subset}_{name}" / layouts.reds_folder(subset, name)
      for subset in ("train", "val")
    )
    (val / "000").rename(train / "240")
    for clip in layouts.REDS4:
      shutil.copytree(train / "001", val / clip)
  opened = open_clips(tmp_path, num_frames=3, need_flow=True)
  assert {clip.name: clip.flow.read(1, 3)[0, 0, 0, 0] for clip in opened.clips} == {
    "001": 1,
    "240": 240,
  }
