"""Exported programs over clips: windows of frames, or a recursion over the frames of one face.

The order is that of `fmanet_jax.streaming` and `keep_jax.streaming` on one device, which tests tie
to these. All programs take the weights and then tuples of arrays, and return tuples of arrays.
"""

from __future__ import annotations

import collections
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from vsr_jax import guards
from vsr_jax.errors import UserError
from vsr_jax.exported import files
from vsr_jax.frames import as_frames, stream_frames
from vsr_jax.programs import CompiledByShape
from vsr_jax.runtime import compiler_options

T = TypeVar("T")
Leaves = tuple[jax.Array, ...]
Run = Callable[..., Any]  # (name of a program, *tuples of arrays) -> its result


class Stream:
  """Restores clips of one size by the programs of a file.

  Attributes:
    height: of the frames that it takes, in pixels.
    width: likewise.
    scale: output size over input size along each axis.
    context: how many frames before, and how many after, a frame its restoration may see.
  """

  def __init__(self, contents: files.Contents):
    """Takes what `files.read` returned; any error means that its parts do not fit each other."""
    if "windows" in contents.manifest:
      sizes = contents.manifest["windows"]
      self.height, self.width, self.scale = sizes["height"], sizes["width"], sizes["scale"]
      self.context = sizes["radius"], sizes["radius"]
      self._restore = functools.partial(_restore_windows, sizes["radius"])
    else:
      numbers = contents.manifest["recursion"]
      self.height = self.width = numbers["size"]
      self.scale, self.context = 1, (0, numbers["look_ahead"])
      step = contents.programs["step"]
      state = jax.tree.unflatten(step.in_tree, step.in_avals)[0][1]
      self._restore = functools.partial(_restore_face, numbers, state)
    self._check(contents)
    self._weights = jax.device_put(contents.weights)
    self._programs = {name: self._compiled(name, x) for name, x in contents.programs.items()}

  def _check(self, contents: files.Contents) -> None:
    """Goes through a clip of two frames without computing anything."""

    def restored(weights: dict[str, jax.Array], *frames: jax.Array) -> list[jax.Array]:
      def run(name: str, *arguments: Leaves) -> Any:
        return contents.programs[name].call(weights, *arguments)

      return list(self._restore(run, frames))

    frame = jax.ShapeDtypeStruct((1, self.height, self.width, 3), np.uint8)
    found = jax.eval_shape(restored, contents.weights, frame, frame)
    shape = 1, self.scale * self.height, self.scale * self.width, 3
    if [(x.shape, x.dtype) for x in found] != 2 * [(shape, np.uint8)]:
      raise ValueError("its programs make no frames of the size that its manifest states")

  def _compiled(self, name: str, program: export.Exported) -> CompiledByShape:
    jitted = jax.jit(program.call, compiler_options=compiler_options())
    return CompiledByShape(jitted, lambda *_: f'"{name}" for {self.width}x{self.height}')

  def stream(self, frames: Any) -> Iterator[Any]:
    """Restores every frame of a clip.

    Args:
      frames: uint8 or float in [0, 1], RGB [height width 3]; or `Frame`s, whose times are kept.

    Returns:
      uint8 RGB [scale*height scale*width 3], one a frame, or `Frame`s of such images. The next one
      is computed while one is yielded.

    Raises:
      ValueError: from iteration: a frame is of another form or size.
    """
    return stream_frames(self._stream_images, frames)

  def _stream_images(self, frames: Any) -> Iterator[np.ndarray]:
    def run(name: str, *arguments: Leaves) -> Any:
      return self._programs[name](self._weights, *arguments)

    last = None
    for image in self._restore(run, self._checked(frames)):
      if last is not None:
        yield np.asarray(last)[0]
      last = image
    if last is not None:
      yield np.asarray(last)[0]

  def _checked(self, frames: Any) -> Iterator[np.ndarray]:
    """The frames [1 h w 3], copied: a caller may fill one buffer anew."""
    for frame in as_frames(frames):
      h, w, _ = frame.shape
      if (h, w) != (self.height, self.width):
        raise ValueError(f"a frame is {w}x{h}, not {self.width}x{self.height}; resize it")
      yield np.array(frame[None])


def _restore_windows(radius: int, run: Run, frames: Iterable[Any]) -> Iterator[jax.Array]:
  """FMA-Net's order: a frame's features are computed once, for all windows that hold it.

  "features" takes a frame and returns what windows need of it, and what only that window needs of
  which it is the centre. "window" takes the first of each of its frames, oldest first, then the
  second of its centre, and returns the restored centre.
  """
  window, centres = collections.deque[Leaves](), collections.deque[Leaves](maxlen=radius + 1)
  for features, of_centre in _repeat_ends(radius, (run("features", (x,)) for x in frames)):
    window.append(features)
    centres.append(of_centre)
    if len(window) == 2 * radius + 1:
      ((image,),) = run("window", *window, centres[0])
      yield image
      window.popleft()  # freed before the next features are computed


def _repeat_ends(radius: int, items: Iterable[T]) -> Iterator[T]:
  """The items, with copies of the first before and of the last after them, if there is any."""
  item = None
  for i, item in enumerate(items):
    yield from [item] * (radius + 1 if i == 0 else 1)
  if item is not None:
    yield from [item] * radius


def _restore_face(
  numbers: Mapping[str, Any], state_form: Sequence[Any], run: Run, frames: Iterable[Any]
) -> Iterator[jax.Array]:
  """KEEP's order: a recursion over the aligned frames of one face.

  "gains" takes the latents [1 t ...] of a window and returns a gain for each. "step" takes the
  state, zeros before the first frame, the observation, its gain and its flow; it returns the next
  state and the restored frame. For the others see `_observed_groups`.
  """
  window, attend_first, causal = (numbers[x] for x in ("window", "attend_first_frame", "causal"))
  state = tuple(jnp.zeros((1, *x.shape[1:]), x.dtype) for x in state_form)
  first: jax.Array | None = None
  latest = collections.deque[jax.Array](maxlen=window - attend_first)
  first_size, size = (1, 1) if causal else (window, numbers["look_ahead"] + 1)
  for group in _observed_groups(first_size, size, run, frames):
    latents = [observation[0] for observation, _ in group]
    if first is None:
      first = latents[0]
      latents = latents[1:] if attend_first else latents
    latest.extend(latents)
    seen = [first, *latest] if attend_first else [*latest]
    # What comes after makes no difference to a causal model: one program for all.
    padding = [seen[-1]] * (window - len(seen)) if causal else []
    ((gains,),) = run("gains", (jnp.stack(seen + padding, axis=1),))
    for i, (observation, flow) in enumerate(group, len(seen) - len(group)):
      state, (image,) = run("step", state, observation, (gains[:, i],), flow)
      yield image


def _observed_groups(
  first_size: int, size: int, run: Run, frames: Iterable[Any]
) -> Iterator[list[tuple[Leaves, Leaves]]]:
  """Observations and flows of frames in groups, whose gains are computed together.

  "see" takes frames and returns what is observed, latents first, and features for the flow. "flow"
  takes features of frames and of those before them, a first frame's own, and returns the flow.
  """
  group, before = list[tuple[Leaves, Leaves]](), None
  for frame in frames:
    observation, features = run("see", (frame,))
    (flow,) = run("flow", features, features if before is None else before)
    group.append((observation, flow))
    before = features
    if len(group) == first_size:
      yield group
      group, first_size = [], size
  if group:
    yield group


def open_stream(path: str | os.PathLike[str], contents: files.Contents) -> Stream:
  """The stream of a file's programs, on JAX's default device.

  Args:
    path: the file, for errors.
    contents: what `files.read` returned for it.

  Raises:
    UserError: its programs do not fit together or to its weights, or are for other platforms.
  """
  here, platforms = export.default_export_platform(), contents.manifest["platforms"]
  if here not in platforms:
    listed = guards.shorten(", ".join(platforms))
    raise UserError(
      f"{path}: holds programs for {listed}, and JAX runs on {here} here; "
      f"export with --platforms {here}, or set JAX_PLATFORMS"
    )
  with guards.reading(os.fspath(path), "exported file", "another one"):
    return Stream(contents)
