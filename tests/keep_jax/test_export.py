"""KEEP as one file: restores what the library restores, on every platform it is lowered for."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from keep_jax import export, restore, streaming
from tests.keep_jax import tiny
from tests.vsr_jax.clips import encode
from vsr_jax import run_exported, video
from vsr_jax.checkpoint import export_params
from vsr_jax.exported import files


def images(path):
  with video.open_reader(str(path)) as reader:
    return [frame.image for frame in reader]


@pytest.mark.parametrize(
  "arch",
  [
    tiny.ARCH,
    *(
      pytest.param(arch, marks=pytest.mark.slow)
      for arch in (
        tiny.change(causal=True),
        tiny.change(attend_first_frame=False, cft=(), cfa=()),
        tiny.change(flow="raft_small"),
      )
    ),
  ],
)
@pytest.mark.usefixtures("shared_restorers")
def test_a_file_restores_what_the_library_does(arch, tmp_path, run_main, monkeypatch):
  """A window of 4, two frames at a time after it, and a last one alone; one frame before a cut."""
  monkeypatch.setattr(streaming, "WINDOW", 4)
  monkeypatch.setattr(streaming, "LOOK_AHEAD", 1)
  params = {name: tree for name, tree in tiny.load(arch)[1].items() if jax.tree.leaves(tree)}
  export_params(tmp_path / "weights", params, {"model": dataclasses.asdict(arch)})
  path = tmp_path / "model.zip"
  said = run_main(export.main, tmp_path / "weights", path)
  size = arch.image_size
  assert f"KEEP for faces of {size}x{size}, float32, on cpu, cuda, tpu: see, flow, " in said.out
  contents = files.read(path)
  assert {x.platforms for x in contents.programs.values()} == {("cpu", "cuda", "tpu")}
  faces = jax.ShapeDtypeStruct((3, size, size, 3), np.uint8)  # any number of them
  (latents, *_), _ = jax.eval_shape(contents.programs["see"].call, contents.weights, (faces,))
  assert len(latents.shape) == 4
  assert latents.shape[0] == 3
  frames = tiny.as_uint8(tiny.clip(9, size=size))
  encode(tmp_path / "clip.mkv", frames, "ffv1", "bgr0")
  clip = tmp_path / "clip.mkv", tmp_path / "out", "--frames", "1:8"
  run_main(run_exported.main, path, *clip)
  found = images(tmp_path / "out")
  options = ("--aligned", "--window", 4, "--look-ahead", 1, "--checkpoint", tmp_path / "weights")
  run_main(restore.main, *clip, *options)
  expected = images(tmp_path / "out")
  assert len(expected) == 7
  assert np.std(expected) > 1  # a constant would prove nothing
  np.testing.assert_array_equal(found, expected)
