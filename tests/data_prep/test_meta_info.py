"""VFHQ's text files: what is read of them, and which line is named when one is wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsr_jax.data_prep import meta_info
from vsr_jax.errors import UserError

RELEASED = """Video ID: _HebIzK_LP4
H: 1080
W: 1920
FPS: 29.97

CROP 100 200 612 712
00000000.png 180.5 240.25 320 241 256 310 200 370 312 371
00000001.png 181 241 321 242 257 311 201 371 313 372
"""


def test_the_released_format():
  meta = meta_info.parse_clip(RELEASED, "x.txt")
  assert meta.fps == 29.97
  assert list(meta.landmarks) == ["00000000.png", "00000001.png"]
  expected = [[180.5, 240.25], [320, 241], [256, 310], [200, 370], [312, 371]]
  np.testing.assert_array_equal(meta.landmarks["00000000.png"], expected)


@given(
  st.lists(
    st.lists(st.floats(-1000, 1000, width=32), min_size=10, max_size=10), min_size=1, max_size=4
  ),
  st.sampled_from([0, 25, 29.97]),
)
def test_what_is_written_is_read_back(rows, fps):
  landmarks = {f"{i:08d}.png": np.reshape(row, (5, 2)) for i, row in enumerate(rows)}
  meta = meta_info.parse_clip(meta_info.format_clip(landmarks, fps), "x")
  assert meta.fps == fps
  assert meta.landmarks.keys() == landmarks.keys()
  for name, points in landmarks.items():
    # Three decimals are written: half of the last, and float32's rounding at 1000.
    np.testing.assert_allclose(meta.landmarks[name], points, rtol=0, atol=0.0006)


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("00000001.png 1 2 3", r"x\.txt:9: 4 words instead of a frame's name and 10 coordinates"),
    ("00000002.png 1 2 3 4 5 six 7 8 9 10", r"x\.txt:9: 'six' is not a number"),
    ("00000002.png 1 2 3 4 5 nan 7 8 9 10", r"x\.txt:9: 'nan' is not a number"),
    ("00000000.png 1 2 3 4 5 6 7 8 9 10", r"x\.txt:9: frame 00000000\.png comes twice"),
    ("FPS: fast", r"x\.txt:9: 'fast' is not a number"),
  ],
)
def test_a_wrong_line_is_named(line, message):
  with pytest.raises(UserError, match=message):
    meta_info.parse_clip(RELEASED + line, "x.txt")


def test_the_list_of_clips(tmp_path):
  path = tmp_path / meta_info.GLOBAL
  path.write_text("Clip+a+P0/120\n\ngroup1/Clip+b+P1/7\n")
  assert meta_info.read_global(path) == {"Clip+a+P0": 120, "Clip+b+P1": 7}


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("Clip+a 120\n", r"global_meta_info\.txt:1: 'Clip\+a 120' is not CLIP/FRAMES"),
    ("Clip+a/12\nClip+b/x\n", ":2: "),
    ("Clip+a/12\n/12\n", ":2: "),
    ("Clip+a/12\nClip+a/12\n", r":2: clip Clip\+a comes twice"),
  ],
)
def test_a_wrong_list_is_named(tmp_path, text, message):
  (tmp_path / meta_info.GLOBAL).write_text(text)
  with pytest.raises(UserError, match=message):
    meta_info.read_global(tmp_path / meta_info.GLOBAL)


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"\xff\xfe", r"global\.txt: not a text"),
    (b"../5\n", r"global\.txt:1: '\.\./5' is not CLIP/FRAMES"),
    (b"a/5\n../../x\0/5", r"global\.txt:2: "),
    (b"a/" + b"9" * 5000, r"global\.txt:1: 'a/9{78}' is not"),
    (b"x" * 100_000 + b"/5", r"global\.txt:1: "),
  ],
  ids=len,
)
def test_a_list_that_is_none_is_named(tmp_path, data, message):
  path = tmp_path / "global.txt"
  path.write_bytes(data)
  with pytest.raises(UserError, match=message) as error:
    meta_info.read_global(path)
  assert len(str(error.value)) < len(str(path)) + 200


def test_no_more_text_is_read_than_a_clip_has(tmp_path, monkeypatch):
  monkeypatch.setattr(meta_info, "LIMIT", 100)
  (tmp_path / "a.txt").write_text("x" * 101)
  with pytest.raises(UserError, match=r"a\.txt: not a text .has more than 100 bytes."):
    meta_info.read_clip(tmp_path / "a.txt")
