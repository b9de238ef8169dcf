"""Restoring a stream of frames with FMA-Net, each frame's features computed once."""

from __future__ import annotations

import collections
import contextlib
import functools
import gc
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Compiled

from fmanet_jax.architecture import Architecture
from fmanet_jax.model import FMANet, Params, param_shapes
from fmanet_jax.window import encode_frames, fold_kernels, restore_window
from vsr_jax import paths
from vsr_jax.architecture import from_entries
from vsr_jax.checkpoint import read_meta, restore_params
from vsr_jax.compiling import compiling
from vsr_jax.errors import UserError
from vsr_jax.frames import Frame, as_frames_of_one_size, stream_frames
from vsr_jax.memory import release_freed_memory
from vsr_jax.runtime import compiler_options
from vsr_jax.sharding import make_mesh

DEMO_WEIGHTS = pathlib.Path(__file__).parent / "assets" / "demo_weights"
OVERLAP = 16  # input pixels that neighbouring tiles share and are blended over


def load(
  checkpoint: str | pathlib.Path | None = None, dtype: str = "float32"
) -> tuple[FMANet, Params]:
  """Loads a model and its parameters.

  Args:
    checkpoint: a run's folder, a checkpoint, or what `fmanet_jax.convert` wrote;
      None for the demonstration weights that ship with the package.
    dtype: compute type, "float32" or "bfloat16".

  Returns:
    The model and its params.

  Raises:
    UserError: the checkpoint is missing, damaged, another model's, or of stage 1 (no Net^R yet).
  """
  checkpoint = DEMO_WEIGHTS if checkpoint is None else checkpoint
  arch = load_architecture(checkpoint)
  model = FMANet(arch, jnp.dtype(dtype))
  return model, restore_params(checkpoint, param_shapes(model))


def load_architecture(checkpoint: str | pathlib.Path | None = None) -> Architecture:
  """Reads the architecture in a checkpoint's metadata; arguments and errors are those of `load`."""
  checkpoint = DEMO_WEIGHTS if checkpoint is None else checkpoint
  if not paths.is_folder(checkpoint):
    raise UserError(
      f"{checkpoint}: no such folder; give a run's folder, or make one of the released weights "
      "with `python -m fmanet_jax.convert model_D.pt model_R.pt DIR`"
    )
  meta = read_meta(checkpoint)
  if meta.get("stage") == "degradation":
    raise UserError(
      f"{checkpoint}: of stage 1, which trains no restoration; give a run of the joint stage"
    )
  remedy = (
    "not a checkpoint of FMA-Net; give a run of fmanet_jax.train or the output of "
    "fmanet_jax.convert"
  )
  return from_entries(Architecture, meta.get("model"), str(checkpoint), remedy)


class Restorer:
  """Restores frames as a stream, in memory that does not grow with the clip's length.

  The features F^0..F^M of a frame, in both networks, depend on that frame alone: they are computed
  once and used in the T windows that contain it. Two programs are compiled per frame size: one
  computes the features of a group of frames, one restores the windows whose last frames they are.

  Attributes:
    model: the model.
    mesh: each device of its "data" axis restores one frame of a group; None for
      one device.
    group_size: number of frames in a group, one per device.
    overlap: see `enlarge.enlarger.Enlarger`, which this is.
  """

  overlap = OVERLAP

  def __init__(self, model: FMANet, params: Params, mesh: Mesh | None = None):
    self.model = model
    self.mesh = mesh
    self.group_size = 1 if mesh is None else mesh.shape["data"]
    replicated = by_frame = None
    if mesh is not None:
      replicated, by_frame = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    radius = model.arch.frames // 2
    # A window reaches 2 * radius frames back from its last frame: into `before` earlier groups, of
    # which the first `past` hold no centre frame, so that their F^0 is not needed.
    before = -(-2 * radius // self.group_size)
    past = (before * self.group_size - radius) // self.group_size
    self._groups_held, self._groups_with_f0 = before + 1, before + 1 - past
    self._by_frame = by_frame
    self._params = jax.device_put(params, replicated)
    self._folded = jax.device_put(fold_kernels(model, params), replicated)
    self._programs: dict[tuple[int, int], tuple[Compiled, Compiled]] = {}

  @property
  def scale(self) -> int:
    return self.model.arch.scale

  @property
  def context(self) -> int:
    return self.model.arch.frames // 2

  @property
  def device(self) -> jax.Device:
    return jax.devices()[0] if self.mesh is None else self.mesh.devices.flat[0]

  def memory_needed(self, height: int, width: int) -> int:
    """`estimate_memory`; that of all devices where they share the memory, which those of a CPU do.

    Without the params.
    """
    sharing = self.group_size if self.device.platform == "cpu" else 1
    return sharing * estimate_memory(self.model, height, width)

  def _on_mesh(self) -> contextlib.AbstractContextManager:
    return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

  @overload
  def stream(self, frames: Iterable[Frame]) -> Iterator[Frame]: ...
  @overload
  def stream(self, frames: Any) -> Iterator[np.ndarray]: ...
  def stream(self, frames: Any) -> Iterator[np.ndarray] | Iterator[Frame]:
    """Restores every frame; at both ends the stream is padded with copies of its end frames.

    Args:
      frames: uint8 or float in [0, 1], RGB [h w 3], all of one size (see `as_frames`); or `Frame`s,
        whose times are kept.

    Returns:
      uint8 RGB [sh sw 3], one per frame, or `Frame`s of such images. The next group is computed
      while one is yielded.

    Raises:
      ValueError: from iteration: the frames are of another form or of several sizes.
    """
    return stream_frames(self._stream_images, frames)

  def _stream_images(self, frames: Any) -> Iterator[np.ndarray]:
    frames = as_frames_of_one_size(frames)
    radius = self.model.arch.frames // 2
    held = collections.deque(maxlen=self._groups_held)
    groups_f0 = collections.deque(maxlen=self._groups_with_f0)
    last: list[np.ndarray] = []
    pending: tuple[jax.Array, int] | None = None
    padded = _replicate_ends(frames, (self._groups_held - 1) * self.group_size - radius, radius)
    for group, count in _groups(padded, self.group_size):
      # Padding repeats the same array: its features are those of the group before.
      if not last or any(a is not b for a, b in zip(group, last, strict=True)):
        features = f0 = None
        if len(held) == self._groups_held:  # freed before the next features are computed
          held.popleft()
          groups_f0.popleft()
        features, f0 = self._run_encode(np.stack(group))
      held.append(features)
      groups_f0.append(f0)
      last = group
      if len(held) == self._groups_held:
        images = self._run_restore(tuple(held), tuple(groups_f0))
        if pending is not None:
          yield from _to_host(*pending)
        pending = images, count
    if pending is not None:
      yield from _to_host(*pending)

  def _run_encode(self, frames: np.ndarray) -> Any:
    """Runs the compiled `encode_group` on uint8 frames [b h w 3]."""
    encode, _ = self._compiled(*frames.shape[1:3])
    return encode(self._params, jax.device_put(frames, self._by_frame))

  def _run_restore(self, groups: tuple[Any, ...], groups_f0: tuple[Any, ...]) -> jax.Array:
    """Runs the compiled `restore_group` on the features of the groups held."""
    _, restore = self._compiled(*groups[0][0].shape[1:3])
    return restore(self._params, self._folded, groups, groups_f0)

  def _compiled(self, h: int, w: int) -> tuple[Compiled, Compiled]:
    """Both programs for frames [h w 3]; memory used by compiling is released before they run."""
    if (h, w) not in self._programs:
      jit = functools.partial(jax.jit, compiler_options=compiler_options())
      encode = jit(functools.partial(encode_group, self.model), out_shardings=self._by_frame)
      restore = jit(functools.partial(restore_group, self.model, self._by_frame))
      frames, (group, f0) = self._shapes(h, w)
      held = (group,) * self._groups_held, (f0,) * self._groups_with_f0
      with self._on_mesh(), compiling(f"for {w}x{h}"):
        self._programs[h, w] = (
          encode.lower(self._params, frames).compile(),
          restore.lower(self._params, self._folded, *held).compile(),
        )
      del encode, restore
      gc.collect()  # much of it is held in cycles
      release_freed_memory()
    return self._programs[h, w]

  def _shapes(self, h: int, w: int) -> tuple[Any, Any]:
    """Shapes of a group of frames [b h w 3], and of the result of `encode_group` for it."""
    a = self.model.arch

    def images(channels, dtype):
      return jax.ShapeDtypeStruct((self.group_size, h, w, channels), dtype, sharding=self._by_frame)

    feature = images(a.dim, self.model.dtype)
    others = (feature,) * a.frma_blocks
    return images(3, np.uint8), ((images(3, np.float32), others, others), (feature, feature))


def open_restorer(checkpoint: str | pathlib.Path | None = None, dtype: str = "float32") -> Restorer:
  """A `Restorer` on all devices, of what `load` loads; arguments and errors are those of `load`."""
  model, params = load(checkpoint, dtype)
  return Restorer(model, params, make_mesh() if jax.device_count() > 1 else None)


def encode_group(model: FMANet, params: Params, frames: jax.Array) -> Any:
  """uint8 [b h w 3] -> (frames in [0, 1], F^1..F^M of Net^D, of Net^R), (F^0 of Net^D, of Net^R).

  F^0 is apart because a window needs it of its centre frame only, so that it is kept for less long.
  """
  frames = frames.astype(jnp.float32) / 255
  d, r = encode_frames(model, params, frames)
  return (frames, d[1:], r[1:]), (d[0], r[0])


def restore_group(
  model: FMANet,
  by_frame: NamedSharding | None,
  params: Params,
  folded: jax.Array | None,
  groups: tuple[Any, ...],
  groups_f0: tuple[Any, ...],
) -> jax.Array:
  """Restores the b windows whose last frames are the last group's, -> uint8 [b sh sw 3].

  `groups` and `groups_f0` are results of `encode_group`, oldest first; `groups_f0` begins with
  the group that holds the first window's centre frame.
  """
  t, b = model.arch.frames, len(groups[0][0])
  start = (len(groups) - 1) * b - (t - 1)
  centre = (start + t // 2) % b

  def windows(first, count, *parts):
    if b == 1:
      return parts[first : first + count]
    held = jnp.concatenate(parts)
    frames = tuple(held[first + i : first + i + b] for i in range(count))
    return frames if by_frame is None else lax.with_sharding_constraint(frames, by_frame)

  f0_d, f0_r = jax.tree.map(functools.partial(windows, centre, 1), *groups_f0)
  frames, d, r = jax.tree.map(functools.partial(windows, start, t), *groups)
  images = restore_window(model, params, folded, frames, (f0_d, *d), (f0_r, *r))
  return jnp.rint(255 * jnp.clip(images, 0, 1)).astype(jnp.uint8)


def _replicate_ends(frames: Iterable[np.ndarray], before: int, after: int) -> Iterator[np.ndarray]:
  """The frames, with copies of the first before and of the last after them, if there is any."""
  frame = None
  for i, frame in enumerate(map(np.array, frames)):  # copies: a caller may fill one buffer anew
    if i == 0:
      yield from [frame] * before
    yield frame
  if frame is not None:
    yield from [frame] * after


def _groups(frames: Iterator[np.ndarray], size: int) -> Iterator[tuple[list[np.ndarray], int]]:
  """Groups of `size` frames, the last one padded with its last frame; and their true lengths."""
  group: list[np.ndarray] = []
  for frame in frames:
    group.append(frame)
    if len(group) == size:
      yield group, size
      group = []
  if group:
    yield group + [group[-1]] * (size - len(group)), len(group)


def _to_host(images: jax.Array, count: int) -> Iterator[np.ndarray]:
  yield from np.asarray(images)[:count]


def estimate_memory(model: FMANet, height: int, width: int) -> int:
  """Bytes, without the params, that a device needs to restore frames of [height width].

  Linear in the pixels: the features of the T frames of a window and of the next
  one, two outputs, and the temporaries of the most demanding part. That is the
  alignment (of every frame k^D and its flow-mask pairs, an attention with its
  feed-forward network) or the upsampling (K^R, the patches it weighs, features
  at full resolution).
  Temporaries count as float32, which XLA turns bfloat16 into on CPU, and the
  upsampling as one strip; large frames, made in more of them, take up to a
  fifth less. XLA's own figures agree within a factor of two.
  """
  a = model.arch
  features = 2 * (a.frma_blocks + 1) * a.dim * jnp.dtype(model.dtype).itemsize
  aligning = (3 * a.frames + 13) * 4 * a.dim
  upsampling = 4 * a.frames * a.kernel_up**2 * (a.scale**2 + 2 * 3) + 5 * a.dim * a.scale**2
  temporary = max(aligning, upsampling)
  outputs = 2 * 3 * a.scale**2
  return height * width * ((a.frames + 1) * features + temporary + outputs)
