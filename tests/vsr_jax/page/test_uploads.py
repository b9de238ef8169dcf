"""What the page takes, and that nothing of it becomes a path, a name or the text of an option."""

from __future__ import annotations

import itertools
import sys

import pytest

from fmanet_jax import restore as restore_fmanet
from keep_jax import restore as restore_keep
from tests.vsr_jax.clips import encode, moving_waves
from vsr_jax import images, video
from vsr_jax.errors import UserError
from vsr_jax.page import uploads
from vsr_jax.page.uploads import Limits, frame_options, restore_options, take_upload

WEIGHTS = {"demonstration weights": None, "mine": "/weights/mine"}
CHOSEN = {
  "weights": "demonstration weights",
  "tile": "automatic",
  "deinterlace": False,
  "faces": "largest",
  "strength": 1,
  "scale": 1,
  "background": "lanczos",
  "skip_sharp": False,
}
COMMANDS = {"fmanet": restore_fmanet, "keep": restore_keep}


def parsed(monkeypatch, system, options):
  """What the restore command makes of options."""
  monkeypatch.setattr(sys, "argv", ["command", "clip", "restored.mp4", *options])
  return COMMANDS[system]._parse()


@pytest.fixture
def clip(tmp_path):
  path = tmp_path / "--quality=0; $(x) <b>.mp4"
  encode(path, moving_waves(10))
  return path


def test_a_clip_gets_a_folder_and_a_name_of_ours(clip, tmp_path):
  root = tmp_path / "root"
  root.mkdir()
  upload = take_upload(clip, root, Limits())
  assert upload.folder.parent == root
  names = {path.name for path in upload.folder.iterdir()}
  assert names == {upload.name, "first.jpg"} == {"the uploaded file", "first.jpg"}
  assert images.read_image(upload.first).shape == (48, 64, 3)
  assert upload.describe() == "64x48, 25 frames/s, 10 frames, 0.4 s, without sound"
  assert upload.seconds == 0.4
  assert clip.exists()


def test_only_uploads_are_read(clip, tmp_path):
  root = tmp_path / "root"
  (root / ("0a" * 32)).mkdir(parents=True)
  upload = root / ("0a" * 32) / "x.mp4"
  upload.write_bytes(b"x")
  (upload.parent / "link").symlink_to("/etc/passwd")
  (root / "job_1").mkdir()
  (root / "job_1" / "restored.mp4").write_bytes(b"x")
  assert uploads.checked(str(upload), root) == upload
  for sent in (
    *(root, upload.parent, upload.parent / "link", upload.parent / "../.." / clip.name, clip),
    *(root / "job_1" / "restored.mp4", upload.parent / "no", "/etc/passwd", "http://x/a.mp4"),
  ):
    with pytest.raises(UserError, match="did not arrive"):
      uploads.checked(str(sent), root)


def test_a_picture_is_known_by_its_content(tmp_path):
  path = tmp_path / "x.mp4"
  path.write_bytes(images.encode_image(moving_waves(1)[0], ".jpg"))
  upload = take_upload(path, tmp_path, Limits())
  assert upload.info.is_folder
  assert (upload.folder / upload.name).read_bytes() == path.read_bytes()
  assert upload.describe() == "a picture of 64x48"
  assert frame_options(upload, 0, 0, Limits()) == ["--max-pixels=2073600"]


@pytest.mark.parametrize("data", [b"", b"\x00" * 2000, b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_a_broken_file_gives_the_line_of_the_restore_command(tmp_path, data):
  (tmp_path / "root").mkdir()
  broken = tmp_path / "the uploaded file"
  broken.write_bytes(data)
  with pytest.raises(UserError) as ours:
    take_upload(broken, tmp_path / "root", Limits())
  with pytest.raises(UserError) as theirs:
    video.open_reader(str(broken), max_pixels=Limits().pixels)
  assert str(ours.value) == str(theirs.value).replace(f"{tmp_path}/", "")
  assert list((tmp_path / "root").iterdir()) == []


def test_uploads_are_bounded(clip, tmp_path):
  (tmp_path / "root").mkdir()
  for limits, told in (
    (Limits(megabytes=1e-3), "this page takes 0.001"),
    (Limits(pixels=3000), "more than the limit of 3,000"),
  ):
    with pytest.raises(UserError, match=told):
      take_upload(clip, tmp_path / "root", limits)
  assert list((tmp_path / "root").iterdir()) == []


def test_a_part_in_seconds_becomes_frames(clip, tmp_path, monkeypatch):
  upload = take_upload(clip, tmp_path, Limits())
  for start, stop, frames in ((0, 0.4, (0, 10)), (0.08, 0.2, (2, 5)), (0.05, 0.07, (1, 2))):
    options = frame_options(upload, start, stop, Limits())
    assert parsed(monkeypatch, "fmanet", options).frames == frames
  for start, stop, told in (
    (0.2, 0.2, "holds no frame"),
    (0, 31, "at most 30 s at once"),
    (float("nan"), 1, "from: give a number"),
    ("0:1", 1, "from: give a number"),
    (0, float("inf"), "to: give a number"),
    (None, 1, "from: give a number"),
  ):
    with pytest.raises(UserError, match=told):
      frame_options(upload, start, stop, Limits())


@pytest.mark.parametrize("system", COMMANDS)
def test_all_that_is_offered_is_taken_by_the_commands(monkeypatch, system):
  for tile, background in itertools.product(uploads.TILES, uploads.BACKGROUNDS):
    chosen = {**CHOSEN, "tile": tile, "background": background}
    parsed(monkeypatch, system, restore_options(system, chosen, WEIGHTS))
  more = {"weights": "mine", "faces": "all", "strength": 0.25, "scale": 2.5, "tile": "96"}
  more |= {"skip_sharp": True, "deinterlace": True, "background": "realesrgan"}
  args = parsed(monkeypatch, system, restore_options(system, {**CHOSEN, **more}, WEIGHTS))
  assert (args.checkpoint, args.deinterlace) == ("/weights/mine", True)
  if system == "fmanet":
    assert args.tile == 96
  else:
    assert (args.faces, args.fidelity, args.upscale, args.skip_sharp) == ("all", 0.25, 2.5, True)
    assert (args.background_model, args.background_tile) == ("realesrgan", 96)


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("weights", "/etc"),
    ("weights", None),
    ("tile", "96 --checkpoint=/etc"),
    ("tile", 96),
    ("faces", ["all"]),
    ("strength", 2),
    ("strength", "1"),
    ("scale", float("nan")),
    ("scale", 1e9),
    ("background", "realesrgan --background=/etc"),
  ],
)
def test_what_is_not_offered_is_refused(name, value):
  with pytest.raises(UserError, match=f"^{name}: "):
    restore_options("keep", {**CHOSEN, name: value}, WEIGHTS)
