"""Exported files: what is written is run, whatever else is given is refused in one line."""

from __future__ import annotations

import json
import os
import re
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from tests.support.bucket import make_bucket
from tests.vsr_jax.clips import encode, moving_waves
from vsr_jax import run_exported, video
from vsr_jax.errors import UserError
from vsr_jax.exported import command, files, programs, streams

PARAMS = {"net": {"gain": jnp.array(0.5)}}
FORM = {"windows": {"height": 16, "width": 24, "scale": 2, "radius": 1}}


def features(params, frame):
  x = frame.astype(jnp.float32)
  return {"scaled": x * params["net"]["gain"]}, x


def window(params, before, of_frame, after, centre):
  """The centre with the difference of its neighbours, enlarged by repetition."""
  del params, of_frame
  x = centre + after["scaled"] - before["scaled"]
  image = jnp.rint(jnp.clip(x, 0, 255)).astype(jnp.uint8)
  return (jnp.repeat(jnp.repeat(image, 2, axis=1), 2, axis=2),)


def lower(platforms=("cpu", "cuda", "tpu"), window=window):
  frame = jax.ShapeDtypeStruct((1, 16, 24, 3), np.uint8)
  group, centre = jax.eval_shape(features, PARAMS, frame)
  return {
    "features": programs.lower(features, PARAMS, [frame], platforms),
    "window": programs.lower(window, PARAMS, [group, group, group, centre], platforms),
  }


def write(path, lowered=None, form=FORM, **weights):
  found = {name: np.asarray(x) for name, x in programs.by_name(PARAMS).items()}
  entries = {"system": "a toy", "dtype": "float32", **form}
  files.write(path, entries, lowered or lower(), found | weights)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
  path = tmp_path_factory.mktemp("exported") / "toy.zip"
  write(path)
  return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
  path = tmp_path_factory.mktemp("clip") / "clip.mkv"
  encode(path, moving_waves(4, 16, 24), "ffv1", "bgr0")
  return path


def images(path):
  with video.open_reader(str(path)) as reader:
    return np.stack([frame.image for frame in reader])


def assert_refused(said, pattern):
  """One line, and no traceback."""
  (line,) = said.err.strip().splitlines()
  assert re.search(pattern, line), line


def expected(frames):
  x = np.pad(frames, ((1, 1), *3 * ((0, 0),)), mode="edge").astype(np.float32)
  x = np.rint(np.clip(x[1:-1] + 0.5 * (x[2:] - x[:-2]), 0, 255)).astype(np.uint8)
  return x.repeat(2, axis=1).repeat(2, axis=2)


def test_every_frame_is_restored_from_its_window(good, clip, tmp_path, run_main):
  said = run_main(run_exported.main, good, clip, tmp_path / "out", "--frames", "1:4")
  assert "out: 3 frames of 48x32 in" in said.out
  np.testing.assert_array_equal(images(tmp_path / "out"), expected(images(clip))[1:])


def test_short_clips(good):
  stream, frames = streams.open_stream(good, files.read(good)), moving_waves(2, 16, 24)
  for length in (1, 2):
    found = list(stream.stream(frames[:length]))
    np.testing.assert_array_equal(found, expected(frames[:length]))
  assert list(stream.stream(frames[:0])) == []


def test_a_frame_of_another_size_is_refused(good):
  stream = streams.open_stream(good, files.read(good))
  with pytest.raises(ValueError, match="a frame is 16x16, not 24x16"):
    list(stream.stream(moving_waves(1, 16, 16)))


def test_equal_contents_give_equal_files(good, tmp_path):
  """And a file does not tell on which machine, by which lines of code, it was made."""
  write(tmp_path / "again.zip")
  assert (tmp_path / "again.zip").read_bytes() == good.read_bytes()
  assert os.getcwd().encode() not in lower()["window"].serialize()


def test_the_parts_are_what_others_read(good):
  """A plain zip file; StableHLO for each platform; a manifest in JSON."""
  with zipfile.ZipFile(good) as archive:
    assert archive.testzip() is None
    manifest = json.loads(archive.read("manifest.json"))
    program = export.deserialize(bytearray(archive.read("window.jax_export")))
  assert manifest["platforms"] == ["cpu", "cuda", "tpu"] == list(program.platforms)
  assert manifest["windows"] == FORM["windows"]
  assert manifest["versions"]["jax"] == jax.__version__


def changed(good, path, name, data, compression=zipfile.ZIP_STORED):
  """A copy with a part exchanged, or without it; its checksums are right."""
  with zipfile.ZipFile(good) as old, zipfile.ZipFile(path, "w") as new:
    for part in old.namelist():
      if part != name:
        new.writestr(part, old.read(part))
      elif data is not None:
        new.writestr(part, data(old.read(part)), compression)


def entry(**fields):
  return lambda text: json.dumps(json.loads(text) | fields)


@pytest.mark.parametrize(
  ("name", "data", "pattern"),
  [
    ("manifest.json", None, "a zip file of something else; give a file that fmanet_jax.export"),
    ("manifest.json", entry(format=99), "of format 99, and this version of vsr_jax reads up to 1"),
    ("manifest.json", entry(windows={}), "is damaged .* no field 'height'"),
    ("manifest.json", entry(recursion={}), "is damaged"),
    ("manifest.json", entry(windows=FORM["windows"] | {"scale": 3}), "no frames of the size"),
    ("manifest.json", entry(windows=FORM["windows"] | {"width": 8}), "is damaged"),
    ("manifest.json", entry(windows=FORM["windows"] | {"radius": 9}), "is damaged"),
    (
      "manifest.json",
      entry(platforms=["tpu"]),
      "states programs for tpu, and 'features' is for cpu",
    ),
    ("manifest.json", entry(platforms=["a\nb", "cpu"]), r"programs for a\\nb, cpu, and .*again"),
    ("manifest.json", entry(platforms=[1000 * "x"]), r"programs for x{60}\.\.\., and"),
    ("manifest.json", lambda _: b" " * 2**21, "manifest.json is larger than it can be"),
    ("features.jax_export", None, "a part is missing"),
    ("features.jax_export", lambda x: x[:200], "programs cannot be read .* of jax .*export again"),
    ("features.jax_export", lambda _: b"", "programs cannot be read"),
    ("weights.safetensors", lambda x: x[:-1], "is damaged"),
    ("weights.safetensors", lambda x: x.replace(b"net/gain", b"net/bias"), "is damaged"),
  ],
)
def test_changed_files_are_refused(name, data, pattern, good, clip, tmp_path, run_main):
  changed(good, tmp_path / "toy.zip", name, data)
  said = run_main(run_exported.main, tmp_path / "toy.zip", clip, tmp_path / "out", code=2)
  assert_refused(said, f"toy.zip.*{pattern}")
  assert os.listdir(tmp_path) == ["toy.zip"]


def test_every_program_is_for_the_platforms_of_the_file_and_of_the_machine(
  clip, tmp_path, run_main
):
  mixed = lower() | {"window": lower(("tpu",))["window"]}
  for lowered, pattern in (
    (mixed, "states programs for cpu, cuda, tpu, and 'window' is for tpu; export again"),
    (lower(("tpu",)), "for tpu, and JAX runs on cpu here; export with --platforms cpu"),
  ):
    write(tmp_path / "toy.zip", lowered)
    said = run_main(run_exported.main, tmp_path / "toy.zip", clip, tmp_path / "out", code=2)
    assert_refused(said, f"toy.zip: .*{pattern}")


def test_a_look_ahead_beyond_the_window_is_refused(tmp_path):
  numbers = {"size": 16, "window": 3, "attend_first_frame": False, "causal": False}
  write(tmp_path / "toy.zip", form={"recursion": numbers | {"look_ahead": 3}})
  with pytest.raises(UserError, match="toy.zip is damaged .*look_ahead is not below its window"):
    files.read(tmp_path / "toy.zip")


@pytest.mark.parametrize(
  ("content", "pattern"),
  [
    (lambda x: b"", "is damaged or no exported file"),
    (lambda x: b"not a zip file", "is damaged or no exported file"),
    (lambda x: x[:-30], "is damaged or no exported file"),
    (lambda x: x[: len(x) // 2] + b"\x55" + x[len(x) // 2 + 1 :], "is damaged|cannot be read"),
    (None, "cannot be read: No such file"),
  ],
)
def test_damaged_files_are_refused(content, pattern, good, clip, tmp_path, run_main):
  if content:
    (tmp_path / "toy.zip").write_bytes(content(good.read_bytes()))
  said = run_main(run_exported.main, tmp_path / "toy.zip", clip, tmp_path / "out", code=2)
  assert_refused(said, f"toy.zip.*({pattern})")


def test_weights_are_no_larger_than_the_file(good, clip, tmp_path, run_main):
  zeros = ("weights.safetensors", lambda _: bytes(2**24), zipfile.ZIP_DEFLATED)
  changed(good, tmp_path / "toy.zip", *zeros)
  said = run_main(run_exported.main, tmp_path / "toy.zip", clip, tmp_path / "out", code=2)
  assert_refused(said, "weights.safetensors is larger than it can be")


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(number, clip, tmp_path, run_main):
  bad = {"net/gain": np.float32(number), "a\nname" + 80 * "x": np.float32([1, number])}
  write(tmp_path / "toy.zip", **bad)
  said = run_main(run_exported.main, tmp_path / "toy.zip", clip, tmp_path / "out", code=2)
  name = re.escape("a\\nname" + 53 * "x")
  assert_refused(said, f"toy.zip holds NaN or infinite numbers in .*{name}.*; fetch it again")
  assert os.listdir(tmp_path) == ["toy.zip"]


def test_programs_that_call_code_of_the_process_are_refused(clip, tmp_path, run_main):
  def program(weights, *groups):
    image = jax.ShapeDtypeStruct((1, 32, 48, 3), np.uint8)
    return ((jax.ffi.ffi_call("a_function", image)(weights["net/gain"]),),)

  lowered = lower(("cpu",))
  window = lowered["window"]
  arguments, _ = jax.tree.unflatten(
    window.in_tree, [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in window.in_avals]
  )
  checks = [export.DisabledSafetyCheck.custom_call("a_function")]
  made = export.export(jax.jit(program), platforms=("cpu",), disabled_checks=checks)(*arguments)
  write(tmp_path / "toy.zip", lowered | {"window": made})
  said = run_main(run_exported.main, tmp_path / "toy.zip", clip, tmp_path / "out", code=2)
  assert_refused(said, "a program calls foreign code: a_function")


def test_a_clip_of_another_size_is_refused(good, tmp_path, run_main):
  encode(tmp_path / "clip.mkv", moving_waves(2, 16, 16), "ffv1", "bgr0")
  said = run_main(run_exported.main, good, tmp_path / "clip.mkv", tmp_path / "out", code=2)
  assert_refused(said, "clip.mkv: 16x16, and .*toy.zip is for 24x16")


def test_without_flatbuffers_the_way_to_it_is_told(good, clip, tmp_path, run_main, monkeypatch):
  monkeypatch.setattr(programs.importlib.util, "find_spec", lambda name: None)
  said = run_main(run_exported.main, good, clip, tmp_path / "out", code=2)
  assert_refused(said, "pip install flatbuffers")


def test_a_file_is_written_to_and_read_from_a_bucket(good, monkeypatch):
  bucket = make_bucket(monkeypatch)
  command.check_output("gs://bucket/toy.zip")
  write("gs://bucket/toy.zip")
  assert bucket.cat_file("/bucket/toy.zip") == good.read_bytes()
  assert files.read("gs://bucket/toy.zip").manifest == files.read(good).manifest
  with pytest.raises(UserError, match="^gs://bucket/no.zip cannot be read: No such file"):
    files.read("gs://bucket/no.zip")
