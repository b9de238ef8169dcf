"""A network of Real-ESRGAN's form that is as small as can be, x2, as it is in files and in JAX."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.support.programs import random_params
from vsr_jax.conversion import to_state_dict
from vsr_jax.enlarge.realesrgan import RealESRGAN
from vsr_jax.enlarge.srvgg import SRVGGNetCompact
from vsr_jax.enlarge.srvgg_conversion import RULES

NET = SRVGGNetCompact(features=4, convs=1, scale=2)
_SHAPES = {
  "body.0.weight": (4, 3, 3, 3),
  "body.0.bias": (4,),
  "body.1.weight": (4,),
  "body.2.weight": (4, 4, 3, 3),
  "body.2.bias": (4,),
  "body.3.weight": (4,),
  "body.4.weight": (12, 4, 3, 3),
  "body.4.bias": (12,),
}


@functools.cache
def params() -> Any:
  """Parameters that float16 holds."""
  image = jnp.zeros((1, 8, 8, 3))
  made = random_params(lambda key: NET.init(key, image)["params"])
  return jax.tree.map(lambda x: np.asarray(x).astype(np.float16).astype(np.float32), made)


def state_dict() -> dict[str, np.ndarray]:
  """With the released names."""
  return to_state_dict(params(), RULES, _SHAPES)


@functools.cache
def enlarger() -> RealESRGAN:
  """One for all tests: it keeps its compiled programs."""
  return RealESRGAN(NET, params())
