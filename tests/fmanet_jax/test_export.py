"""FMA-Net as one file: restores what the library restores, on every platform it is lowered for."""

from __future__ import annotations

import dataclasses
import os
import re

import numpy as np
import pytest

from fmanet_jax import export, streaming
from tests.support import fmanet
from tests.vsr_jax.clips import encode, moving_waves
from vsr_jax import run_exported, video
from vsr_jax.exported import files

ARCH = dataclasses.replace(fmanet.SMALLEST, kernel_down=4)  # whose kernels are folded


def test_a_file_restores_what_the_library_does(tmp_path, run_main):
  fmanet.save(tmp_path / "weights", ARCH)
  path, size = tmp_path / "model.zip", ("--height", 16, "--width", 24)
  said = run_main(export.main, tmp_path / "weights", path, *size)
  assert "FMA-Net for frames of 24x16, enlarged 2 times, float32, on cpu, cuda, tpu" in said.out
  assert f"next: python -m vsr_jax.run_exported {path} INPUT OUTPUT" in said.out
  contents = files.read(path)
  assert "folded" in contents.weights
  assert {x.platforms for x in contents.programs.values()} == {("cpu", "cuda", "tpu")}
  encode(tmp_path / "clip.mkv", moving_waves(5, 16, 24), "ffv1", "bgr0")
  run_main(run_exported.main, path, tmp_path / "clip.mkv", tmp_path / "out", "--frames", "1:")
  with video.open_reader(str(tmp_path / "out")) as reader:
    found = [frame.image for frame in reader]
  restorer = streaming.Restorer(*streaming.load(tmp_path / "weights"))
  expected = list(restorer.stream(moving_waves(5, 16, 24)))[1:]
  assert np.std(expected) > 1  # a constant would prove nothing
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
  ("options", "pattern"),
  [
    (("--height", 16), "arguments are required: --width"),
    (("--height", 16, "--width", 0), "--width 0: must be 1 to 8192"),
    (("--height", 16, "--width", 16, "--platforms", "gpu"), "'gpu' is not of the form cpu,tpu"),
    (("--height", 16, "--width", 16, "--platforms", "tpu,tpu"), "'tpu,tpu' is not of the form"),
    (("--height", 16, "--width", 16), "nothing: no such folder"),
  ],
)
def test_what_cannot_be_exported(options, pattern, tmp_path, run_main):
  said = run_main(export.main, tmp_path / "nothing", tmp_path / "model.zip", *options, code=2)
  (line,) = said.err.strip().splitlines()
  assert re.search(pattern, line), line
  assert os.listdir(tmp_path) == []


def test_a_place_that_cannot_be_written_is_told_before_any_work(tmp_path, run_main):
  size = ("--height", 16, "--width", 16)
  for place, told in ((tmp_path, "is a folder"), (tmp_path / "a" / "b", "there is no folder")):
    assert told in run_main(export.main, tmp_path / "nothing", place, *size, code=2).err
