"""What every flow network asks of its images."""

from __future__ import annotations

import jax


def check_frames(frames: jax.Array, multiple: int) -> None:
  """Raises ValueError unless frames are [b h w 3] with sides that are multiples."""
  shape = frames.shape
  if len(shape) != 4 or shape[3] != 3 or any(n % multiple or not n for n in shape[1:3]):
    raise ValueError(f"frames of shape {shape}, not [b h w 3] with sides multiples of {multiple}")


def check_pair(image1: jax.Array, image2: jax.Array) -> None:
  """Raises ValueError unless two images have one shape."""
  if image1.shape != image2.shape:
    raise ValueError(f"images of shapes {image1.shape} and {image2.shape}")
