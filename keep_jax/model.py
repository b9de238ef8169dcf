"""KEEP as pure functions of `params`, a tree for each sub-network.

`observe` encodes low-quality frames, `calculate_gains` blends them over a clip, `step` is one turn
of the recursion, `restore_clip` the whole clip as one `jax.lax.scan` over it. Images are RGB in
[-1, 1], [b t h w 3], at the size of the output: a low-quality clip is enlarged before.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from keep_jax import kalman
from keep_jax.code_predictor import CodePredictor
from keep_jax.fusion import ControllableFeatureTransform, CrossFrameAttention
from keep_jax.vqgan import Encoder, Generator, Taps
from vsr_jax.errors import UserError
from vsr_jax.flow import gmflow

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Architecture:
  """The numbers that make a KEEP; the defaults are the released model.

  Raises:
    UserError: a number does not fit the others; the text names both.
  """

  image_size: int = 512  # side of the images
  width: int = 64  # channels of the first level of encoder and generator
  multiples: tuple[int, ...] = (1, 2, 2, 4, 4, 8)  # of the width, by level
  res_blocks: int = 2  # a level
  emb_dim: int = 256  # channels of the latent and of the codebook
  codes: int = 1024  # entries of the codebook
  dim: int = 512  # of the code predictor
  heads: int = 8  # of code predictor and gain network
  layers: int = 9  # of the code predictor
  gain_head_dim: int = 48
  gain_layers: int = 3
  cft: tuple[int, ...] = (16, 32, 64)  # sides of the features with CFT
  cfa: tuple[int, ...] = (16, 32)  # sides of the features with CFA
  cfa_heads: int = 4
  cfa_head_dim: int = 256

  def __post_init__(self):
    for name in ("multiples", "cft", "cfa"):  # JSON gives lists
      object.__setattr__(self, name, tuple(getattr(self, name)))
    factor = 2 ** (len(self.multiples) - 1)
    if self.image_size % factor:
      raise UserError(
        f"model.image_size = {self.image_size}: must be a multiple of {factor}, which "
        f"model.multiples of {len(self.multiples)} levels asks for"
      )
    sides = [self.image_size // 2**level for level in range(len(self.multiples))]
    for name in ("cft", "cfa"):
      for side in getattr(self, name):
        if side not in sides:
          raise UserError(f"model.{name} = {side}: must be one of {sides}, the features' sides")
    for multiple in self.multiples:
      if multiple * self.width % 32:
        raise UserError(
          f"model.width = {self.width}: its multiples must divide into 32 groups, "
          f"{multiple} * {self.width} does not"
        )
    if self.dim % self.heads:
      raise UserError(f"model.heads = {self.heads}: must divide model.dim = {self.dim}")

  @property
  def latent_size(self) -> int:
    """Side of the latent."""
    return self.image_size // 2 ** (len(self.multiples) - 1)

  def channels(self, side: int) -> int:
    """Channels of the encoder's and generator's tapped features of that side."""
    level = (self.image_size // side).bit_length() - 1
    return self.width * self.multiples[level]


@dataclasses.dataclass(frozen=True)
class KEEP:
  """The sub-networks of one architecture; a static value, parameters live outside.

  Attributes:
    arch: the numbers.
    dtype: the compute type of convolutions and products.
  """

  arch: Architecture = Architecture()
  dtype: jnp.dtype = jnp.float32

  @property
  def encoder(self) -> Encoder:
    a = self.arch
    return Encoder(a.width, a.multiples, a.emb_dim, a.res_blocks, self.dtype)

  @property
  def generator(self) -> Generator:
    return Generator(self.arch.width, self.arch.multiples, self.arch.res_blocks, self.dtype)

  @property
  def code_predictor(self) -> CodePredictor:
    a = self.arch
    return CodePredictor(a.dim, a.heads, a.layers, a.codes, self.dtype)

  @property
  def gain_network(self) -> kalman.GainNetwork:
    a = self.arch
    return kalman.GainNetwork(a.heads, a.gain_head_dim, a.gain_layers, self.dtype)

  # These two are applied within the generator, whose children they are not: hence parent=None.

  @property
  def cft(self) -> ControllableFeatureTransform:
    return ControllableFeatureTransform(self.dtype, parent=None)

  @property
  def cfa(self) -> CrossFrameAttention:
    a = self.arch
    return CrossFrameAttention(a.cfa_heads, a.cfa_head_dim, self.dtype, parent=None)


@flax.struct.dataclass
class Observation:
  """What the encoder says of low-quality frames; leading axes [b] or [b t]."""

  latent: jax.Array  # [... h' w' emb_dim]
  skips: Taps  # side -> feature [... side side c], no gradient


@flax.struct.dataclass
class State:
  """What the recursion carries from frame to frame."""

  image: jax.Array  # the restored frame before [b h w 3]
  features: Taps  # side -> the generator's feature after CFA [b side side c]
  started: jax.Array  # [b] bool: whether there was a frame before


@flax.struct.dataclass
class Restored:
  """Restored frames and what losses read; leading axes [b] or [b t]."""

  image: jax.Array  # [... h w 3], not clipped
  logits: jax.Array  # over the codebook [... h'*w' codes]
  features: Taps  # side -> the generator's feature after CFT and CFA [... side side c]


def init_params(model: KEEP, key: jax.Array) -> Params:
  """Random parameters of every sub-network, float32.

  Trees: encoder, hq_encoder, codebook, generator, code_predictor, gain, cft, cfa (by side), flow.
  """
  a = model.arch
  keys = iter(jax.random.split(key, 8 + len(a.cft) + len(a.cfa)))
  image = jnp.zeros((1, a.image_size, a.image_size, 3))
  latent = jnp.zeros((1, a.latent_size, a.latent_size, a.emb_dim))

  def init(net: nn.Module, *inputs):
    return net.init(next(keys), *inputs)["params"]

  def by_side(net: nn.Module, sides: tuple[int, ...]):
    feature = {side: jnp.zeros((1, side, side, a.channels(side))) for side in sides}
    return {str(side): init(net, feature[side], feature[side]) for side in sides}

  bound = 1 / a.codes
  return {
    "encoder": init(model.encoder, image),
    "hq_encoder": init(model.encoder, image),
    "codebook": jax.random.uniform(next(keys), (a.codes, a.emb_dim), minval=-bound, maxval=bound),
    "generator": init(model.generator, latent),
    "code_predictor": init(model.code_predictor, latent),
    "gain": init(model.gain_network, latent[:, None]),
    "cft": by_side(model.cft, a.cft),
    "cfa": by_side(model.cfa, a.cfa),
    "flow": gmflow.init(next(keys)),
  }


def observe(model: KEEP, params: Params, frames: jax.Array) -> Observation:
  """Encodes low-quality frames [... h w 3], which are already of the output's size."""
  *lead, h, w, c = frames.shape
  latent, skips = model.encoder.apply(
    {"params": params["encoder"]}, frames.reshape(-1, h, w, c), model.arch.cft
  )
  # The skips train CFT, not the encoder: stage III keeps the encoder of stage II.
  found = Observation(latent, lax.stop_gradient(skips))
  return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), found)


def calculate_gains(model: KEEP, params: Params, latents: jax.Array) -> jax.Array:
  """Kalman gains [b t h' w' 1] of a clip's latents [b t h' w' emb_dim]; see `GainNetwork`."""
  return model.gain_network.apply({"params": params["gain"]}, latents)


def flow_features(params: Params, frames: jax.Array) -> jax.Array:
  """What GMFlow sees in frames [b h w 3] in [-1, 1]; once a frame serves both of its pairs."""
  return gmflow.encode(params["flow"], 127.5 * (frames + 1))


def flow_between(params: Params, features: jax.Array, before: jax.Array) -> jax.Array:
  """Flow [b h w 2] in pixels from frames to the frames before them, of their features."""
  return gmflow.flow_from_features(params["flow"], features, before)


def clip_flows(params: Params, frames: jax.Array) -> jax.Array:
  """Flow [b t-1 h w 2] from frame i + 1 to frame i of clips [b t h w 3]; no gradient.

  A pair of frames of each clip at a time: memory does not grow with their length.
  """
  frames = lax.stop_gradient(frames).swapaxes(0, 1)
  features = lax.map(functools.partial(flow_features, params), frames)
  pairs = features[1:], features[:-1]
  flows = lax.map(lambda pair: flow_between(params, *pair), pairs)
  return lax.stop_gradient(flows).swapaxes(0, 1)


def initial_state(model: KEEP, batch: int) -> State:
  """The state before a first frame."""
  a = model.arch
  return State(
    image=jnp.zeros((batch, a.image_size, a.image_size, 3), model.dtype),
    features={
      side: jnp.zeros((batch, side, side, a.channels(side)), model.dtype) for side in a.cfa
    },
    started=jnp.zeros(batch, bool),
  )


def step(
  model: KEEP,
  params: Params,
  state: State,
  observation: Observation,
  gain: jax.Array,
  flow: jax.Array,
  fidelity: float = 1.0,
) -> tuple[State, Restored]:
  """One turn of the recursion: predict, update, decode (KEEP, Sec. 3.2, Eq. 3 to 6).

  Args:
    model: the model.
    params: of its sub-networks.
    state: after the frame before.
    observation: of this frame, leading axis [b].
    gain: [b h' w' 1].
    flow: [b h w 2] in pixels, from this frame to the one before; any finite number for a first.
    fidelity: weight of CFT: 0 for the codebook's face, 1 for the input's.

  Returns:
    The next state and the restored frame.
  """
  latent = filter_latent(model, params, state, observation.latent, gain, flow)
  logits = model.code_predictor.apply({"params": params["code_predictor"]}, latent)
  side = model.arch.latent_size
  codes = params["codebook"][jnp.argmax(logits, axis=-1)]  # integers: no gradient to the logits
  # The codebook is frozen wherever this runs.
  codes = lax.stop_gradient(codes).reshape(-1, side, side, model.arch.emb_dim)
  features: Taps = {}

  def fuse(side: int, x: jax.Array) -> jax.Array:
    if side in model.arch.cft:
      cft = {"params": params["cft"][str(side)]}
      x = model.cft.apply(cft, observation.skips[side], x, fidelity)
    if side in model.arch.cfa:
      # The feature before is not stopped: CFA learns through time.
      cfa = {"params": params["cfa"][str(side)]}
      fused = model.cfa.apply(cfa, x, state.features[side])
      x = jnp.where(_expand(state.started, x), fused, x)
    if side in model.arch.cft or side in model.arch.cfa:
      features[side] = x
    return x

  image = model.generator.apply({"params": params["generator"]}, codes.astype(model.dtype), fuse)
  carried = {side: features[side] for side in model.arch.cfa}
  return State(image, carried, jnp.ones_like(state.started)), Restored(image, logits, features)


def filter_latent(
  model: KEEP,
  params: Params,
  state: State,
  observed: jax.Array,
  gain: jax.Array,
  flow: jax.Array,
) -> jax.Array:
  """Prediction and update, [b h' w' emb_dim]; the observation itself for a first frame."""
  encode = functools.partial(model.encoder.apply, {"params": params["hq_encoder"]})

  def predicted():
    # No gradient through time here: the frame before is stopped, the HQ encoder is frozen.
    latent = kalman.predict(state.image, flow, lambda image: encode(image)[0])
    return lax.stop_gradient(latent)

  # A clip's first frame needs no prediction; while every clip of the batch is at its first, the
  # encoder is not run.
  predicted = lax.cond(state.started.any(), predicted, lambda: jnp.zeros_like(observed))
  gain = jnp.where(_expand(state.started, gain), gain, jnp.zeros_like(gain))
  return kalman.update(observed, predicted, gain)


def restore_clip(
  model: KEEP,
  params: Params,
  frames: jax.Array,
  flows: jax.Array,
  *,
  fidelity: float = 1.0,
  remat: bool = False,
) -> tuple[Restored, Observation, jax.Array]:
  """Restores clips: gains of the whole clip first, then one scan over its frames.

  Args:
    model: the model.
    params: of its sub-networks.
    frames: low-quality frames in [-1, 1] at the output's size, [b t h w 3].
    flows: [b t-1 h w 2] in pixels, from frame i + 1 to frame i; no gradient.
    fidelity: weight of CFT.
    remat: recompute a step's activations in the backward pass.

  Returns:
    The restored frames, [b t ...], what the encoder says of the input, and the gains.
  """
  observation = observe(model, params, frames)
  gains = calculate_gains(model, params, observation.latent)
  flows = lax.stop_gradient(jnp.concatenate([jnp.zeros_like(flows[:, :1]), flows], axis=1))

  def kalman_step(state, inputs):
    return step(model, params, state, *inputs, fidelity)

  body = jax.checkpoint(kalman_step) if remat else kalman_step
  time_first = functools.partial(jax.tree.map, lambda x: x.swapaxes(0, 1))
  inputs = time_first((observation, gains, flows))
  _, restored = lax.scan(body, initial_state(model, frames.shape[0]), inputs)
  return time_first(restored), observation, gains


def _expand(flags: jax.Array, x: jax.Array) -> jax.Array:
  """[b] -> [b 1 ... 1], of x's rank."""
  return flags.reshape(-1, *[1] * (x.ndim - 1))
