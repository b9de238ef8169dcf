"""Writes small networks of Real-ESRGAN's form in ncnn's format."""

from __future__ import annotations

import pathlib
import struct
from collections.abc import Mapping

import numpy as np

_TAGS = {"<f2": 0x01306B47, "<f4": 0}


def save_network(
  path: pathlib.Path, state: Mapping[str, np.ndarray], scale: int, dtype: str = "<f2"
) -> None:
  """Writes PATH.param and PATH.bin.

  Args:
    path: both files' name without suffix.
    state: a state dict with the released names.
    scale: of the pixel shuffle.
    dtype: how kernels are stored.
  """
  lines = ["Input in 0 1 data", "Split twice 1 2 data left right"]
  data, last = b"", "left"
  for i in range(len({key.split(".")[1] for key in state})):
    weight = state[f"body.{i}.weight"]
    if weight.ndim == 4:
      options = f"0={len(weight)} 1={weight.shape[-1]} 4=1 5=1 6={weight.size}"
      lines.append(f"Convolution Conv_{i} 1 1 {last} {i} {options}")
      kernel = weight.astype(dtype).tobytes()
      data += struct.pack("<I", _TAGS[dtype]) + kernel + bytes(-len(kernel) % 4)
      data += state[f"body.{i}.bias"].astype("<f4").tobytes()
    else:
      lines.append(f"PReLU PRelu_{i} 1 1 {last} {i} 0={len(weight)}")
      data += weight.astype("<f4").tobytes()
    last = str(i)
  lines += [
    f"PixelShuffle shuffle 1 1 {last} shuffled 0={scale}",
    f"Interp nearest 1 1 right repeated 0=1 1={scale:e} 2={scale:e}",
    "BinaryOp sum 2 1 shuffled repeated output",
  ]
  counts = f"{len(lines)} {len(lines) + 1}"
  path.with_suffix(".param").write_text("\n".join(["7767517", counts, *lines]) + "\n")
  path.with_suffix(".bin").write_bytes(data)
