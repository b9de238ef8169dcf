"""The model as a whole: every size it admits, and that what may not matter does not."""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmanet_jax import model as fmanet
from fmanet_jax import window
from fmanet_jax.architecture import Architecture
from fmanet_jax.model import FMANet, init_params, param_shapes
from tests.fmanet_jax import golden
from tests.support import fmanet as support
from tests.support.fmanet import TINY
from tests.vsr_jax.ops.numeric import normal
from vsr_jax.errors import UserError
from vsr_jax.ops.convolution import convolve
from vsr_jax.ops.strips import by_strips
from vsr_jax.ops.temporal import convolve_frames
from vsr_jax.sharding import batch_sharding, make_mesh, replicated

# Two programs with sums in another order, a dozen layers deep, outputs of order 1.
CLOSE = {"rtol": 0, "atol": 1e-5}


def random_params(arch: Architecture):
  return support.load(arch)[1]


def windows(arch: Architecture, b: int, h: int, w: int):
  """A blurry window and the sharp one."""
  rng = np.random.default_rng(1)
  s = arch.scale
  shapes = (b, arch.frames, h, w, 3), (b, arch.frames, s * h, s * w, 3)
  return [rng.uniform(size=shape).astype(np.float32) for shape in shapes]


def everything(model: FMANet, params, blurry, sharp):
  degradation = fmanet.learn_degradation(model, params, blurry)
  degraded = fmanet.degrade(model, degradation, sharp)
  return degradation, degraded, fmanet.restore(model, params, blurry, degradation)


def stream(model: FMANet, params, blurry):
  """The features of single frames, then the window."""
  frames = [blurry[:, t] for t in range(blurry.shape[1])]
  parts = [(frame, *window.encode_frames(model, params, frame)) for frame in frames]
  folded = window.fold_kernels(model, params)
  return window.restore_window(model, params, folded, *jax.tree.map(lambda *x: x, *parts))


@pytest.mark.parametrize(
  "changes",
  [
    {"frames": 1, "scale": 1, "kernel_down": 5, "use_bias": True, "norm_bias": False},
    {"frames": 7, "dim": 42, "scale": 3, "kernel_down": 3, "flows": 3, "heads": 7},
    {
      "scale": 4,
      "kernel_down": 10,
      "kernel_up": 1,
      "flows": 1,
      "heads": 1,
      "frma_blocks": 2,
      "attention_blocks": 2,
      "ffn_expansion": 1.0,
    },
    {"scale": 1, "kernel_down": 1, "kernel_up": 7, "flows": 12, "heads": 12}
    | {"filtering": "conventional", "attention": "self", "modulation": "sft"},
  ],
  ids=str,
)
def test_shapes(changes):
  arch = dataclasses.replace(TINY, **changes)
  model, b, h, w = FMANet(arch, jnp.bfloat16), 2, 9, 10
  t, s, dim, n = arch.frames, arch.scale, arch.dim, arch.flows
  params = param_shapes(model)
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
  found = jax.eval_shape(functools.partial(everything, model), params, *windows(arch, b, h, w))
  degradation, (recon, hr_warp), restoration = found
  guided = arch.filtering == "flow_guided"
  for part in (degradation, restoration):
    assert [x.shape for x in part.features] == [(b, t, h, w, dim)] * (arch.frma_blocks + 1)
    assert [x.shape for x in part.aligned] == [(b, h, w, dim)] * arch.frma_blocks
    assert [x.shape for x in part.flow_masks] == [(b, t, h, w, 3 * n)] * arch.frma_blocks
  assert degradation.kernel_logits.shape == (b, t, h, w, arch.kernel_down**2)
  assert degradation.anchors.shape == restoration.anchors.shape == (b, t, h, w, 3)
  assert (degradation.image_flow is not None) == guided
  assert not guided or degradation.image_flow.shape == (b, t, h, w, 3)
  assert recon.shape == (b, h, w, 3)
  assert hr_warp.shape == (b, t, s * h, s * w, 3)
  assert restoration.warped.shape == (b, t, h, w, 3)
  assert restoration.output.shape == (b, s * h, s * w, 3)
  assert {x.dtype for x in (recon, hr_warp, restoration.output)} == {jnp.dtype(jnp.float32)}
  streamed = jax.eval_shape(functools.partial(stream, model), params, windows(arch, b, h, w)[0])
  assert (streamed.shape, streamed.dtype) == ((b, s * h, s * w, 3), jnp.float32)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"frames": 4}, "model.frames = 4: must be odd"),
    ({"frames": 0}, "model.frames = 0: must be at least 1"),
    ({"frames": 5}, "model.frames = 5: must divide the width model.dim = 12"),
    ({"flows": 5}, "model.flows = 5: must divide the width model.dim = 12"),
    ({"heads": 8}, "model.heads = 8: must divide the width model.dim = 12"),
    ({"heads": 0}, "model.heads = 0: must be at least 1"),
    ({"scale": 5}, "model.scale = 5: must be 1, 2, 3 or 4"),
    ({"scale": 0}, "model.scale = 0: must be 1, 2, 3 or 4"),
    ({"kernel_up": 4}, "model.kernel_up = 4: must be odd"),
    ({"kernel_down": 5}, "model.kernel_down = 5: must be at least model.scale = 2 and of its par"),
    ({"kernel_down": 2, "scale": 4}, "model.kernel_down = 2: must be at least model.scale = 4"),
    ({"frma_blocks": 0}, "model.frma_blocks = 0: must be at least 1"),
    ({"rdb_blocks": -1}, "model.rdb_blocks = -1: must be at least 1"),
    ({"dim": 0}, "model.dim = 0: must be at least 1"),
    ({"filtering": "none"}, "model.filtering = 'none': must be one of"),
    ({"attention": "both"}, "model.attention = 'both': must be one of"),
    ({"modulation": ""}, "model.modulation = '': must be one of"),
  ],
  ids=str,
)
def test_wrong_architecture_is_one_line(changes, message):
  with pytest.raises(UserError) as error:
    dataclasses.replace(TINY, **changes)
  assert str(error.value).startswith(message)
  assert "\n" not in str(error.value)


def test_batch_and_devices_do_not_mix_samples():
  """A batch of eight on eight devices equals its samples one by one."""
  model, params = FMANet(TINY), random_params(TINY)
  batch = windows(TINY, 8, 6, 7)
  mesh = make_mesh()
  assert mesh.shape["data"] == 8
  run = golden.jit(functools.partial(everything, model))
  inputs = jax.device_put(params, replicated(mesh)), *jax.device_put(batch, batch_sharding(mesh))
  with jax.set_mesh(mesh):
    program = run.lower(*inputs).compile()
    together = program(*inputs)
  assert not re.findall(r" (?:all|collective)-[\w-]+\(", program.as_text())
  output = together[2].output
  assert len(output.sharding.device_set) == 8
  assert output.sharding.shard_shape(output.shape)[0] == 1
  for i in (0, 5):
    alone = run(params, *(x[i : i + 1] for x in batch))
    jax.tree.map(
      lambda a, b, i=i: np.testing.assert_allclose(a[i : i + 1], b, **CLOSE), together, alone
    )


@pytest.mark.slow
def test_stream_in_strips_equals_the_window(monkeypatch):
  arch = dataclasses.replace(TINY, kernel_up=5)
  model, params = FMANet(arch), random_params(arch)
  blurry, _ = windows(arch, 2, 11, 6)
  row = 4 * 2 * 6 * arch.dim * arch.scale**2
  monkeypatch.setattr(window, "_STRIP_BYTES", 3 * row)  # strips of 3 rows, the last one shorter

  @golden.jit
  def both(params, blurry):
    degradation = fmanet.learn_degradation(model, params, blurry)
    return stream(model, params, blurry), fmanet.restore(model, params, blurry, degradation).output

  np.testing.assert_allclose(*both(params, blurry), **CLOSE)


@pytest.mark.parametrize(("rows", "halo"), [(1, 2), (3, 2), (4, 5), (11, 2), (10, 2)])
@pytest.mark.parametrize("scale", [1, 2])
def test_strips_of_a_local_function(rows, halo, scale):
  x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 11, 5, 3)), jnp.float32)
  y = x[:, 0, :, :, :1]

  def function(x, y):
    """Reads two rows away, and knows the image's border."""
    padded = jnp.pad(x, ((0, 0), (0, 0), (2, 2), (0, 0), (0, 0)), mode="edge")
    out = padded[:, 0, 4:] - padded[:, 1, :-4] + y
    return jnp.repeat(jnp.repeat(out, scale, axis=1), scale, axis=2)

  got = by_strips(function, (x, y), rows=rows, halo=halo, scale=scale)
  np.testing.assert_array_equal(got, function(x, y))


def test_conventional_filtering_reads_frames_where_they_are():
  arch = dataclasses.replace(TINY, filtering="conventional")
  params = random_params(arch)
  assert not {"flow_head", "first_flow_head"} & (params["net_d"].keys() | params["net_r"].keys())
  _, sharp = windows(arch, 1, 6, 7)
  uniform = np.zeros((1, 3, 6, 7, 16), np.float32)
  degradation = fmanet.Degradation((), (), (), uniform, None, None)
  recon, hr_warp = fmanet.degrade(FMANet(arch), degradation, sharp)
  np.testing.assert_array_equal(hr_warp, sharp)
  np.testing.assert_allclose(recon[0, 2, 3], sharp[0, :, 3:7, 5:9].mean((0, 1, 2)), rtol=1e-5)


def test_warped_images_know_where_they_are_valid():
  images = np.ones((1, 2, 8, 12, 3), np.float32)
  flow_mask = np.zeros((1, 2, 4, 6, 3), np.float32)
  flow_mask[..., 2] = 100  # a mask of 1
  flow_mask[:, 1, ..., 0] = 2  # the second frame is read 2 LR pixels to the right
  warped, validity = golden.jit(functools.partial(fmanet.warp_images, scale=2))(images, flow_mask)
  assert validity.shape == (1, 2, 8, 12, 1)
  np.testing.assert_array_equal(validity[:, 0], 1)
  np.testing.assert_array_equal(validity[0, 1, :, :, 0].min(axis=0), [1] * 8 + [0] * 4)
  np.testing.assert_array_equal(warped, np.repeat(validity, 3, axis=-1))


@pytest.mark.parametrize(
  "changes", [{}, {"frma_blocks": 3, "attention_blocks": 2, "rdb_blocks": 2}]
)
def test_shapes_are_those_of_the_parameters(changes):
  model = FMANet(dataclasses.replace(TINY, **changes))
  want = jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))
  assert param_shapes(model) == want


@pytest.mark.parametrize("shape", [(1, 3, 7, 6), (2, 1, 4, 5), (1, 3, 3, 6), (1, 2, 6, 1)])
def test_folded_kernels_equal_two_convolutions(shape):
  x, spatial, temporal = (
    normal(0, *shape, 4),
    normal(1, 3, 3, 4, 9) / 6,
    normal(2, 3, 3, 3, 9, 5) / 15,
  )

  @golden.jit
  def both(x, spatial, temporal):
    folded = window.convolve_folded(x, spatial, temporal, window.compose_kernels(spatial, temporal))
    return folded, convolve_frames(convolve(x, spatial), temporal)

  np.testing.assert_allclose(*both(x, spatial, temporal), **CLOSE)
