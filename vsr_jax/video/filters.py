"""FFmpeg's filters for conversion from and to RGB, and for interlaced pictures."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from fractions import Fraction

import av
import numpy as np
from av.filter import Graph

from vsr_jax.images import from_16_bits

# The scale filter's name by AVColorSpace; not listed are unspecified, and RGB, which needs none.
_MATRICES = {
  1: "bt709",
  4: "fcc",
  5: "bt601",
  6: "bt601",
  7: "smpte240m",
  9: "bt2020",
  10: "bt2020",
}
_FULL_RANGE = 2  # AVCOL_RANGE_JPEG

# Chroma interpolated rather than repeated, and exact rounding: within 1/255 of the definition,
# where swscale's fast path is off by up to 3/255.
_SCALE_FLAGS = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"


def scale_graph(width: int, height: int, source: str, target: str, colors: str) -> Graph:
  """Builds a filter that converts frames between pixel formats without resizing.

  `VideoFrame.reformat` is not used because PyAV versions treat its colour arguments differently.

  Args:
    width: pixels.
    height: pixels.
    source: FFmpeg's name of the given pixel format.
    target: FFmpeg's name of the wanted pixel format.
    colors: matrix and range options of FFmpeg's scale filter.

  Returns:
    The configured graph: push one frame, pull one frame.
  """
  graph = Graph()
  buffer = graph.add_buffer(
    width=width, height=height, format=av.VideoFormat(source), time_base=Fraction(1, 1000)
  )
  scale = graph.add("scale", f"{colors}:{_SCALE_FLAGS}")
  pixel_format = graph.add("format", target)
  graph.link_nodes(buffer, scale, pixel_format, graph.add("buffersink")).configure()
  return graph


class RgbConverter:
  """Converts decoded frames to uint8 RGB [h w 3] by the matrix and range that they are tagged with.

  Untagged frames are taken as BT.709 from 1280 columns or 577 rows on and as BT.601 below, in
  limited range, as players do. Alpha is dropped, more than 8 bits are rounded, HDR is not
  tone-mapped.
  """

  def __init__(self):
    self._key = None

  def __call__(self, frame: av.VideoFrame) -> np.ndarray:
    default = "bt709" if frame.width >= 1280 or frame.height > 576 else "bt601"
    matrix = _MATRICES.get(int(frame.colorspace), default)
    name = frame.format.name
    full = int(frame.color_range) == _FULL_RANGE
    parts = frame.format.components
    # The filter would reduce them to 8 bits by v / 256, which is half a level too bright.
    is_deep = parts[0].bits > 8 and (frame.format.is_rgb or len(parts) < 3)
    if self._key != (name, matrix, full):
      colors = f"in_color_matrix={matrix}:in_range={'full' if full else 'limited'}:out_range=full"
      target = "rgb48le" if is_deep else "rgb24"
      self._graph = scale_graph(frame.width, frame.height, name, target, colors)
      self._key = name, matrix, full
    self._graph.push(frame)
    image = self._graph.pull().to_ndarray()
    return from_16_bits(image) if is_deep else image


def deinterlaced(frames: Iterator[av.VideoFrame]) -> Generator[av.VideoFrame, None, None]:
  """Makes one whole picture of each frame, which holds two fields, with FFmpeg's bwdif.

  Args:
    frames: decoded frames. If the first is marked as interlaced, only frames that are so marked are
      changed; otherwise all are, as the marks seem to be missing.

  Yields:
    The frames, with the same times in another time base.
  """
  graph: Graph | None = None
  key = which = None
  for frame in frames:
    which = which or ("interlaced" if frame.interlaced_frame else "all")
    here = frame.width, frame.height, frame.format.name
    if graph is None or here != key:
      if graph:
        graph.push(None)
        yield from _pulled(graph)
      graph, key = _bwdif_graph(frame, which), here
    graph.push(frame)
    yield from _pulled(graph)
  if graph:
    graph.push(None)
    yield from _pulled(graph)


def _bwdif_graph(frame: av.VideoFrame, which: str) -> Graph:
  graph = Graph()
  base = Fraction(frame.time_base.numerator, frame.time_base.denominator)
  size = {"width": frame.width, "height": frame.height}
  buffer = graph.add_buffer(**size, format=frame.format.name, time_base=base)
  bwdif = graph.add("bwdif", f"mode=send_frame:deint={which}")
  graph.link_nodes(buffer, bwdif, graph.add("buffersink")).configure()
  return graph


def _pulled(graph: Graph) -> Iterator[av.VideoFrame]:
  while True:
    try:
      frame = graph.pull()
    except (BlockingIOError, EOFError):  # more input is needed; or the end
      return
    yield frame
