"""A clip before and after it was restored: one beside the other, and pictures."""

from __future__ import annotations

import numpy as np
import pytest

from tests.vsr_jax.clips import encode, grey_levels, moving_waves, number_of
from vsr_jax import compare, images, video


def test_a_clip_is_shown_beside_itself_with_its_sound(tmp_path, run_main):
  sound = np.sin(np.arange(48_000) / 20)
  encode(tmp_path / "before.mp4", grey_levels(14, 24, 32))
  encode(tmp_path / "after.mp4", grey_levels(12, 48, 64), sound=("aac", sound))
  out = tmp_path / "out"
  said = run_main(
    compare.main, tmp_path / "before.mp4", tmp_path / "after.mp4", out, "--frames", "2:14"
  )
  assert said.out == f"{out}: 12 frames\n"
  with video.open_reader(str(out / compare.VIDEO)) as reader:
    assert (reader.info.height, reader.info.width, reader.info.has_audio) == (48, 128, True)
    frames = [frame.image for frame in reader]
  assert [number_of(frame[:, :64]) for frame in frames] == list(range(2, 14))
  assert [number_of(frame[:, 64:]) for frame in frames] == list(range(12))
  pairs = [
    tuple(number_of(images.read_image(out / f"{name}_{i}.jpg")) for name in ("before", "after"))
    for i in range(compare.PAIRS)
  ]
  assert pairs == [(i + 2, i) for i in (0, 1, 3, 4, 6, 7, 8, 10, 11)]


def test_pictures_are_compared_without_a_video(tmp_path, run_main):
  small, large = moving_waves(1)[0], moving_waves(1, 96, 128)[0]
  for name, image in (("a.png", small), ("b.png", large)):
    (tmp_path / name).write_bytes(images.encode_image(image))
  run_main(compare.main, tmp_path / "a.png", tmp_path / "b.png", tmp_path / "out")
  assert {path.name for path in (tmp_path / "out").iterdir()} == {"before_0.jpg", "after_0.jpg"}
  assert images.read_image(tmp_path / "out" / "before_0.jpg").shape == large.shape


def test_large_frames_are_shown_at_a_size_that_browsers_play(tmp_path, run_main):
  encode(tmp_path / "a.mp4", moving_waves(1, 30, 1002))
  run_main(compare.main, tmp_path / "a.mp4", tmp_path / "a.mp4", tmp_path / "out")
  info = video.probe(str(tmp_path / "out" / compare.VIDEO))
  assert (info.height, info.width) == (30, 1920)


def test_other_frames_are_refused(tmp_path, run_main):
  encode(tmp_path / "a.mp4", moving_waves(3))
  encode(tmp_path / "b.mp4", moving_waves(2))
  out = tmp_path / "out"
  said = run_main(compare.main, tmp_path / "a.mp4", tmp_path / "b.mp4", out, code=2)
  assert said.err.splitlines()[-1].startswith(f"error: {tmp_path}/b.mp4: has not as many frames")
  assert not (out / compare.VIDEO).exists()


@pytest.mark.parametrize("total", [1, 2, 9, 10, 1000])
def test_pictures_are_of_the_first_the_last_and_some_between(total):
  spread = compare._spread(total)
  assert (spread[0], spread[-1], len(spread)) == (0, total - 1, min(total, compare.PAIRS))
