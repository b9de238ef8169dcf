"""Outputs of other methods: videos and pictures by the clip's name, and what is refused.

How folders of frames are found is tested by fmanet_jax/test_evaluate.py.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.vsr_jax import clips
from vsr_jax import given_outputs, images
from vsr_jax.errors import UserError


def test_a_video_holds_the_clip_of_its_name(tmp_path):
  clips.encode(tmp_path / "a.b.mp4", clips.grey_levels(6))
  (tmp_path / "a.mp4").write_bytes(b"")  # another clip's
  found = given_outputs.find(tmp_path, "a.b", range(1, 5), 6)
  read = list(found.read())
  assert [number for number, _ in read] == [1, 2, 3, 4]
  assert [clips.number_of(image) for _, image in read] == [1, 2, 3, 4]
  for length, told in ((5, "more than 5 frames"), (7, "6 frames, but the clip has 7")):
    with pytest.raises(UserError, match=f"a.b.mp4: {told}"):
      list(given_outputs.find(tmp_path, "a.b", range(length), length).read())
  cut = given_outputs.find(tmp_path, "a.b", range(3), 6)  # the first frames alone are scored
  assert [number for number, _ in cut.read()] == [0, 1, 2]


def test_a_picture_is_a_clip_of_one_frame(tmp_path):
  image = clips.grey_levels(1)[0]
  (tmp_path / "a.png").write_bytes(images.encode_image(image))
  ((number, read),) = given_outputs.find(tmp_path, "a", range(1), 1).read()
  assert number == 0
  np.testing.assert_array_equal(read, image)
  with pytest.raises(UserError, match="1 images, but the clip has 2 frames"):
    given_outputs.find(tmp_path, "a", range(2), 2)


def test_two_outputs_of_one_name_are_refused(tmp_path):
  for name in ("a.mp4", "a.mkv"):
    (tmp_path / name).write_bytes(b"")
  with pytest.raises(UserError, match="is there too; leave one"):
    given_outputs.find(tmp_path, "a", range(1), 1)
  with pytest.raises(UserError, match="b: no such folder or video; restore b"):
    given_outputs.find(tmp_path, "b", range(1), 1)
