"""Initial values that KEEP's training asks for beyond those of the modules."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from keep_jax.model import KEEP, Params, init_params

VQGAN = ("hq_encoder", "codebook", "generator")  # the sub-networks of stage I


def start_params(model: KEEP, key: jax.Array, *, fusion_as_released: bool = False) -> Params:
  """Random parameters of every sub-network, as a stage of clips starts: a gain network as released.

  Args:
    model: the model.
    key: random key.
    fusion_as_released: start CFT and CFA as the released code does, with all convolutions and all
      linear layers at zero. Products of two zeros have no gradient, so that only the last biases
      and the norms can learn; by default the modules' own start is taken, which is the identity as
      well, but in which everything learns.
  """
  params = init_params(model, key)
  if model.arch.gain == "network":
    params["gain"] = gain_network_as_released(params["gain"], jax.random.fold_in(key, 1))
  if fusion_as_released:
    params |= {name: _without_kernels(params[name]) for name in ("cft", "cfa")}
  return params


def vqgan_params(model: KEEP, key: jax.Array) -> Params:
  """Random parameters of stage I's sub-networks."""
  params = init_params(model, key)
  return {name: params[name] for name in VQGAN}


def gain_network_as_released(params: Any, key: jax.Array) -> Any:
  """The released start of the Kalman gain network.

  Linear kernels from N(0, 0.02^2), those of convolutions from N(0, 2 / fan_in), biases 0.
  """
  flat = traverse_util.flatten_dict(params)
  for i, (path, x) in enumerate(sorted(flat.items())):
    if x.ndim > 1:
      scale = 0.02 if x.ndim == 2 else jnp.sqrt(2 / (x.size // x.shape[-1]))
      flat[path] = scale * jax.random.normal(jax.random.fold_in(key, i), x.shape)
    elif path[-1] == "bias":
      flat[path] = jnp.zeros_like(x)
  return traverse_util.unflatten_dict(flat)


def _without_kernels(params: Any) -> Any:
  """Kernels and their biases at zero, norms as they are (CFT's) or at scale 1 (CFA's)."""
  flat = traverse_util.flatten_dict(params)
  kernels = {path[:-1] for path in flat if path[-1] == "kernel"}
  for path, x in flat.items():
    if path[:-1] in kernels:
      flat[path] = jnp.zeros_like(x)
    elif path[-1] == "scale":
      flat[path] = jnp.ones_like(x)
  return traverse_util.unflatten_dict(flat)
