"""The codebook in training: codes of good frames, how much each is used, restarts of dead ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from keep_jax.model import KEEP, Params
from keep_jax.vqgan import nearest_code

Terms = dict[str, jax.Array]

USE_DECAY = 0.99  # of the moving average of how often each code is used


@jax.named_scope("true_codes")
def true_codes(model: KEEP, params: Params, truth: jax.Array) -> jax.Array:
  """Code indices [b t h'*w'] of good clips [b t h w 3] by the encoder of stage I; no gradient.

  One frame of each clip at a time: the encoder is frozen, so that nothing is kept.
  """

  def encode(frames):
    latent, _ = model.encoder.apply({"params": params["hq_encoder"]}, frames)
    return nearest_code(latent, params["codebook"]).reshape(len(frames), -1)

  frames = lax.stop_gradient(truth).swapaxes(0, 1)
  return lax.stop_gradient(lax.map(encode, frames)).swapaxes(0, 1)


def initial_code_use(model: KEEP, restart: bool) -> dict[str, Any]:
  """The variables of the codebook in stage I.

  "use" is the moving average of each code's share of the latents' places, times the number of
  codes: 1 is usual, 0 is a dead code. It begins at 1, so that what a new run logs of it is too good
  for some hundred steps. With `restart` it begins at 0, and "spare" holds a latent for each code:
  all codes but those that the first batch uses often become latents of that batch.
  """
  a = model.arch
  if not restart:
    return {"use": jnp.ones(a.codes)}
  return {"use": jnp.zeros(a.codes), "spare": jnp.zeros((a.codes, a.emb_dim))}


def count_codes(
  indices: jax.Array, latent: jax.Array, codes: Mapping[str, Any], keys: Mapping[str, jax.Array]
) -> dict[str, Any]:
  """The variables of `initial_code_use` after a batch or micro-batch.

  Args:
    indices: the batch's code indices, int32 of any shape.
    latent: its latents [... emb_dim], of which spares are drawn.
    codes: the variables before.
    keys: with "codes", for the draw.
  """
  n = len(codes["use"])
  share = jnp.zeros(n).at[indices.reshape(-1)].add(jnp.float32(n) / indices.size)
  found = {"use": USE_DECAY * codes["use"] + (1 - USE_DECAY) * share}
  if "spare" in codes:
    latents = lax.stop_gradient(latent).reshape(-1, latent.shape[-1])
    found["spare"] = latents[jax.random.randint(keys["codes"], (n,), 0, len(latents))]
  return found


def codebook_use(use: jax.Array) -> Terms:
  """How many codes are used more than a tenth as often as usual; and the perplexity of the use."""
  p = use / use.sum()
  entropy = -(p * jnp.log(jnp.maximum(p, 1e-10))).sum()
  return {"codes_used": (use > 0.1).sum().astype(jnp.float32), "perplexity": jnp.exp(entropy)}


def restart_dead_codes(
  below: float, params: dict[str, Any], variables: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Replaces codes used less than `below` by latents of the latest batch; see `Stage.adjust`.

  Use is a moving average, so that a code that is no longer used restarts after some hundred steps
  (390 for 0.02), and a restarted one has as many to be used. Adam's moments of it are left as they
  are: without gradients they have all but vanished by then. The moving average of the params gets
  to the new code as slowly as to every other change.
  """
  codes = variables["codes"]
  dead = codes["use"] < below
  codebook = jnp.where(dead[:, None], codes["spare"], params["codebook"])
  codes = codes | {"use": jnp.where(dead, jnp.ones_like(codes["use"]), codes["use"])}
  return params | {"codebook": codebook}, variables | {"codes": codes}
